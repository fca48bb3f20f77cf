"""One nearest neighbour on frozen features."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench import Backbone, Experience, LabelSpace, Method, batches

__all__ = ["NearestNeighbour"]


class NearestNeighbour(Method):
    """Answers with the class of the most similar stored feature; nothing is trained."""

    family: ClassVar[str] = "prototype"
    paper: ClassVar[str] = "Cover & Hart, IEEE TIT 1967"

    def __init__(self, backbone: Backbone, *, batch_size: int = 256) -> None:
        super().__init__(backbone, epochs=0, batch_size=batch_size)
        self.backbone.requires_grad_(False)
        self.register_buffer("memory", torch.zeros(0, backbone.num_features))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.int64))

    def configure_optimizers(self) -> Any:
        return None

    def stored_samples(self) -> int:
        """Every stored feature is of one training image: it counts."""
        return len(self.labels)

    @torch.no_grad()
    def end(self, exp: Experience) -> None:
        self.eval()
        for x, y in batches(exp.data, self.batch_size, device=self.device):
            self.memory = torch.cat([self.memory, F.normalize(self.backbone.forward_features(x), dim=1)])
            self.labels = torch.cat([self.labels, y])

    @torch.no_grad()
    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        similar = F.normalize(self.backbone.forward_features(x), dim=1) @ self.memory.T
        columns = [similar[:, self.labels == label] for label in space]
        return torch.stack([c.amax(1) if c.shape[1] else similar.new_full((len(x),), -1.0) for c in columns], 1)

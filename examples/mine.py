"""A method of your own in one file: `cl-bench check examples/mine.py:FeatureReplay`, then
`cl-bench run --scenario split_digits --method examples/mine.py:FeatureReplay --method.per_class 20`.

The idea: keep a few features per class, not images, and rehearse the classifier on them.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from cl_bench import Backbone, Batch, Experience, Method, batches

__all__ = ["FeatureReplay"]


class FeatureReplay(Method):
    """A linear head on frozen features, rehearsed on a few stored features of every class seen.

    Args:
        per_class: stored features per class.
    """

    family: ClassVar[str] = "example"
    paper: ClassVar[str] = "none: an example to start from"

    def __init__(self, backbone: Backbone, *, lr: float = 1e-2, epochs: int = 5, batch_size: int = 32,
                 per_class: int = 20) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.per_class = per_class
        self.backbone.requires_grad_(False)
        self.register_buffer("features", torch.zeros(0, backbone.num_features))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.int64))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if len(self.labels):
            loss = loss + self.loss(self.head(self.features), self.labels)
        return loss

    def stored_samples(self) -> int:
        """Every stored feature is of one training image: it counts."""
        return len(self.labels)

    @torch.no_grad()
    def end(self, exp: Experience) -> None:
        self.eval()
        for label in exp.space:
            kept: list[Tensor] = []
            for x, y in batches(exp.data, 256, device=self.device):
                kept.append(self.backbone.forward_features(x[y == label]))
            rows = torch.cat(kept)[: self.per_class]
            self.features = torch.cat([self.features, rows])
            self.labels = torch.cat([self.labels, torch.full((len(rows),), label, device=self.labels.device)])

"""CLIP-Adapter: a bottleneck on the image feature, blended with the feature as it came."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from cl_bench import Backbone, Batch, Experience, LabelSpace
from cl_bench.ranges import Amount, Count, Share, Size, Whole

from ._clip import Clip, contrast

__all__ = ["ClipAdapter"]


class ClipAdapter(Clip):
    """``z' = ratio * ReLU(U ReLU(D z)) + (1 - ratio) * z``; both towers frozen, class texts as they came.

    Gao et al., "CLIP-Adapter: Better Vision-Language Models with Feature Adapters", IJCV 2024
    (gaopengcuhk/CLIP-Adapter); rates and epochs of its continual use in srvCodes/clap4clip: SGD 1e-3, momentum 0.9, a
    cosine, 5 epochs of batches of 32, cross-entropy among all classes seen. There a new adapter is made for every session
    and images are rehearsed; here one adapter is trained on and on, without rehearsal. Features are computed once.

    Args:
        ratio: of the adapter's part.
        reduction: width of a feature over that of the bottleneck.
    """

    paper: ClassVar[str] = "Gao et al., IJCV 2024"

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-3,
        epochs: Whole = 5,
        batch_size: Count = 32,
        iterations: Count = 1000,
        ratio: Share = 0.2,
        reduction: Size = 4,
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size, iterations=iterations)
        self.ratio, self.reduction = ratio, reduction
        self.backbone.requires_grad_(False)
        width = backbone.num_features
        inner = max(1, width // reduction)
        self.down, self.up = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)

    def training_data(self, exp: Experience) -> Dataset:
        return exp.data if exp.augment is not None else self.features_once(exp)

    def adapted(self, z: Tensor) -> Tensor:
        """Features (N, d) to adapted ones, not normalised."""
        return self.ratio * F.relu(self.up(F.relu(self.down(z)))) + (1 - self.ratio) * z

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        with torch.no_grad():
            z = self.backbone.forward_features(batch.x) if batch.x.ndim == 4 else batch.x
            text = self.head.embeddings(self.seen)
        return contrast(F.normalize(self.adapted(z), dim=-1), text, batch.y, self.seen, self.backbone.logit_scale)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD([*self.down.parameters(), *self.up.parameters()], lr=self.lr, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, self.total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        return self.head.over(self.adapted(self.backbone.forward_features(x)), space)

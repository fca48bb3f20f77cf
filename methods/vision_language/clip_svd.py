"""CLIP-SVD: only the singular values of both towers' matrices are trained."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from cl_bench import Backbone, Batch
from cl_bench.ranges import Amount, Count, Share, Text, Whole

from ._adapted import LINEARS, Adapted, Towers
from ._clip import contrast

__all__ = ["ClipSvd"]


class ClipSvd(Adapted):
    """Every matrix of the blocks is ``U diag(s) V``; s is trained, U, V and the biases stay. q, k and v have an s each.

    Koleilat et al., "Singular Value Few-shot Adaptation of Vision-Language Models", 2025, arXiv 2509.03740
    (HealthX-Lab/CLIP-SVD): AdamW 5e-4 with decay 0.01, a cosine to 1e-6, batches of 32, 20 epochs, one template. As a
    continual method the values learned are merged when an experience ends and the next starts from there.

    Deviation: the decay pulls to the values the experience started from. The released one pulls to 0, which shrinks the
    layer whatever the data say.

    Args:
        at: anchored pattern of layer names, matched in each tower.
        towers: ``both``, ``image`` or ``text``.
    """

    paper: ClassVar[str] = "Koleilat et al. (CLIP-SVD), arXiv 2509.03740"

    def __init__(self, backbone: Backbone, *, lr: Amount = 5e-4, epochs: Whole = 20, batch_size: Count = 32,
                 iterations: Count = 1000, weight_decay: Share = 0.01, at: Text = LINEARS,
                 towers: Towers = "both") -> None:  # fmt: skip
        super().__init__(backbone, "svfit", {"r": None}, lr=lr, epochs=epochs, batch_size=batch_size, iterations=iterations,
                         at=at, towers=towers)  # fmt: skip
        self.weight_decay = weight_decay

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        text = self.prompts(self.current)
        return contrast(self.images(batch.x), text, batch.y, self.current, self.backbone.logit_scale)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.trained(), lr=self.lr, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, self.total), eta_min=min(1e-6, self.lr))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

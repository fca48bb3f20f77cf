"""Linear probe: the frozen backbone with a softmax classifier on top."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from cl_bench import Backbone, Batch, Experience, Method, UserError
from cl_bench.ranges import Amount, Count, Whole

from ._decay import adamw

__all__ = ["LinearProbe"]


class LinearProbe(Method):
    """Trains a linear classifier on the frozen backbone, experience after experience.

    The features cannot be forgotten, the classifier can: with ``masked=False`` the rows of old classes are pushed down
    by every new class. BatchNorm stays in evaluation mode. AdamW (betas 0.9 and 0.999, decay 0.01) at a constant rate;
    masked, without decay, which would shrink the rows of old classes step by step.

    Args:
        masked: cross-entropy among the current experience's classes only (the sequential linear probe of the
            pretrained-model literature).
    """

    family: ClassVar[str] = "baseline"
    paper: ClassVar[str] = "frozen features; sequential variant as in McDonnell et al. (RanPAC), NeurIPS 2023"
    shares_batches: ClassVar[bool] = True

    def __init__(
        self, backbone: Backbone, *, lr: Amount = 1e-2, epochs: Whole = 5, batch_size: Count = 32, masked: bool = True
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.masked = masked
        self.backbone.requires_grad_(False)

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        if not any(p.requires_grad for p in self.head.parameters()):
            raise UserError(f"linear_probe has nothing to train: backbone {self.backbone.info['name']!r} answers by the names "
                            "of classes; use a backbone without a text side, or a method such as clip_adapter.")

    def train(self, mode: bool = True) -> LinearProbe:
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.backbone.forward_features(x)
        return self.head(features)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.loss(self(batch.x), batch.y, self.current if self.masked else None)

    def configure_optimizers(self) -> Any:
        return adamw(self, masked=self.masked)

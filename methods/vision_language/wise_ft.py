"""Robust fine-tuning of zero-shot models by averaging weights, as a continual method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from cl_bench import Backbone, Experience
from cl_bench.ranges import Amount, Count, Share, Whole

from .clip_finetune import ClipFinetune

__all__ = ["WiseFt"]


class WiseFt(ClipFinetune):
    """Fine-tuning whose result is averaged with the weights that the experience started from.

    Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022; in the continual form of Thunderbeee/ZSCL
    (scripts/WiSE_finetune.sh): after each experience ``w <- alpha w + (1 - alpha) w_start``, and the next one starts there.

    Args:
        alpha: weight of the fine-tuned model.
    """

    paper: ClassVar[str] = "Wortsman et al., CVPR 2022"
    reference: ClassVar[str] = ""
    keeps_start: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-5,
        epochs: Whole = 0,
        batch_size: Count = 64,
        iterations: Count = 1000,
        smoothing: Share = 0.2,
        alpha: Share = 0.8,
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size, iterations=iterations, smoothing=smoothing)
        self.alpha = alpha

    def end(self, exp: Experience) -> None:
        merge_(self.trained(), self.start, self.alpha)
        super().end(exp)


@torch.no_grad()
def merge_(weights: Sequence[Tensor], start: Sequence[Tensor], alpha: float) -> None:
    """``w <- alpha w + (1 - alpha) w_start``, in place."""
    for p, before in zip(weights, start, strict=True):
        p.mul_(alpha).add_(before.to(p), alpha=1 - alpha)

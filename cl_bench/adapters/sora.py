"""SoRA (Ding et al., EMNLP 2023, arXiv 2311.11696, github.com/TsinghuaC3I/SoRA): sparse low-rank updates by proximal gates."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..ranges import Amount, Size
from ._prox import shrink
from .lora import LoRA

__all__ = ["SoRA"]


class SoRA(LoRA):
    """``W + s B diag(g) A``, g ~ N(0, 1); every step shrinks g by ``xi``, and ``l1 * mean|g|`` over all sites joins the loss.

    The proximal step is not scaled by the learning rate (the released default). ``released_prox`` repeats the authors'
    statements, which close everything below ``2 xi``. The gate wants an optimizer group without weight decay.
    """

    paper: ClassVar[str] = "Ding et al., SoRA, EMNLP 2023"
    mean_loss: ClassVar[bool] = True

    def __init__(
        self,
        weight: Tensor,
        r: Size = 8,
        alpha: Amount | None = 16.0,
        xi: Amount = 3e-4,
        l1: Amount = 10.0,
        released_prox: bool = False,
    ) -> None:
        super().__init__(weight, r, alpha)
        self.gate = nn.Parameter(torch.randn(self.r).to(weight))
        self.xi, self.l1, self.released_prox = xi, l1, released_prox

    @torch.no_grad()
    def reset(self, weight: Tensor) -> None:
        super().reset(weight)
        self.gate.normal_()

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * ((self.B * self.gate) @ self.A)

    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        return self.A, self.scale * (self.B * self.gate)  # closed ranks too: a gate at zero has a gradient

    def factors(self) -> tuple[Tensor, Tensor]:
        keep = self.gate != 0
        return self.A[keep], self.scale * (self.B * self.gate)[:, keep]

    def aux_loss(self) -> Tensor:
        """``l1`` times this site's mean |g|; the set takes the mean over its sites."""
        return self.l1 * self.gate.abs().mean()

    def after_step(self) -> None:
        shrink(self.gate, self.xi, self.released_prox)

    @classmethod
    def count(cls, out: int, inp: int, r: int = 8, **settings: Any) -> int:
        return min(r, out, inp) * (out + inp + 1)

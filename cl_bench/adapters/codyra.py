"""CoDyRA's rank-gated LoRA (Lu et al., arXiv 2412.01004, github.com/Artificer-AI-Lab/CoDyRA): one importance per rank."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..ranges import Size
from ._prox import shrink
from .lora import LoRA

__all__ = ["CoDyRA"]


class CoDyRA(LoRA):
    """``W + B diag(w) A`` with gates w ~ N(0, 1), B zero and no further scale; ``threshold`` is the proximal step's size.

    ``after_step`` shrinks the gates by ``threshold`` (0: dense training); a gate at exactly zero is closed.
    """

    paper: ClassVar[str] = "Lu et al., CoDyRA, arXiv 2412.01004"

    def __init__(self, weight: Tensor, r: Size = 16, released_prox: bool = False) -> None:
        super().__init__(weight, r)
        self.gate = nn.Parameter(torch.randn(self.r).to(weight))
        self.threshold, self.released_prox = 0.0, released_prox

    @torch.no_grad()
    def reset(self, weight: Tensor) -> None:
        super().reset(weight)
        self.gate.normal_()
        self.threshold = 0.0

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.B * self.gate) @ self.A

    def factors(self) -> tuple[Tensor, Tensor]:
        keep = self.gate != 0
        return self.A[keep], (self.B * self.gate)[:, keep]

    @property
    def open_ranks(self) -> int:
        """How many gates are not closed."""
        return int((self.gate != 0).sum())

    def after_step(self) -> None:
        if self.threshold:
            shrink(self.gate, self.threshold, self.released_prox)

    @classmethod
    def count(cls, out: int, inp: int, r: int = 16, **settings: Any) -> int:
        return min(r, out, inp) * (out + inp + 1)

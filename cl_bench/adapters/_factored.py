"""Low-rank kinds that start from a part of the weight itself."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..ranges import Amount, Size
from .lora import LoRA

__all__ = ["Factored"]


class Factored(LoRA):
    """``W + s (B A - B0 A0)`` with (B0, A0) cut out of the weight: W itself at the start, to the last bit.

    The frozen weight stays whole, so switching the adapter off restores the pretrained model and several adapters can
    share one weight; in the papers' form the weight is replaced by its residual ``W - s B0 A0``.
    """

    abstract: ClassVar[bool] = True
    A0: Tensor
    B0: Tensor

    def __init__(self, weight: Tensor, r: Size = 16, alpha: Amount | None = None) -> None:
        super().__init__(weight, r, alpha)
        self.register_buffer("A0", torch.zeros_like(self.A.data))
        self.register_buffer("B0", torch.zeros_like(self.B.data))
        self.reset(weight)

    def start(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(A0 (r, i), B0 (o, r)) in float64 with B0 A0 the part of ``weight`` that is trained."""
        raise NotImplementedError

    @torch.no_grad()
    def reset(self, weight: Tensor) -> None:
        if weight.device.type == "meta":  # shapes only
            return
        a, b = self.start(weight.double())
        root = self.scale**0.5
        self.A0.copy_(a / root)
        self.B0.copy_(b / root)
        self.A.copy_(self.A0)
        self.B.copy_(self.B0)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.B @ self.A - self.B0 @ self.A0)

    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        return self.A, self.scale * self.B  # what was cut out stands still

    def factors(self) -> tuple[Tensor, Tensor]:
        return torch.cat([self.A, self.A0]), self.scale * torch.cat([self.B, -self.B0], 1)

    @classmethod
    def count(cls, out: int, inp: int, r: int = 16, **settings: Any) -> int:
        return min(r, out, inp) * (out + inp)

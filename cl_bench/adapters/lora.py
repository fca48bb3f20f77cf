"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685, github.com/microsoft/LoRA): a trainable low-rank update of a weight."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..ranges import Amount, Size
from ._base import Adapter

__all__ = ["LoRA"]


class LoRA(Adapter):
    """``W + s B A`` with A (r, i) drawn Kaiming-uniform, B (o, r) zero and ``s = alpha / r``.

    ``r`` is clipped to the smaller side of the weight; ``alpha`` None means ``r`` (s = 1); ``rslora`` takes
    ``s = alpha / sqrt(r)``. Input dropout is not offered: it is no function of the weight.
    """

    paper: ClassVar[str] = "Hu et al., LoRA, ICLR 2022"

    def __init__(self, weight: Tensor, r: Size = 8, alpha: Amount | None = None, rslora: bool = False) -> None:
        super().__init__()
        o, i = weight.shape
        self.r = min(r, o, i)
        alpha = float(self.r if alpha is None else alpha)
        self.scale = alpha / math.sqrt(self.r) if rslora else alpha / self.r
        self.A = nn.Parameter(weight.new_empty(self.r, i))
        self.B = nn.Parameter(weight.new_zeros(o, self.r))
        LoRA.reset(self, weight)

    @torch.no_grad()
    def reset(self, weight: Tensor) -> None:
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.B.zero_()

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.B @ self.A)

    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        return self.A, self.scale * self.B

    def factors(self) -> tuple[Tensor, Tensor]:
        """(A (k, i), B (o, k)) with the update equal to ``B @ A``: scale, gates and start folded in."""
        return self.A, self.scale * self.B

    def peft_tensors(self) -> tuple[dict[str, Tensor], int, float, dict[str, Any]] | None:
        """(tensors, rank, alpha, further config) as PEFT stores them; None where only the update can be stored."""
        if type(self) is not LoRA:
            return None
        return {"lora_A.weight": self.A, "lora_B.weight": self.B}, self.r, self.scale * self.r, {}

    def read_peft(self, tensors: dict[str, Tensor]) -> None:
        """Take over PEFT's tensors; shapes must fit."""
        self.A.copy_(tensors["lora_A.weight"])
        self.B.copy_(tensors["lora_B.weight"])

    @classmethod
    def count(cls, out: int, inp: int, r: int = 8, **settings: Any) -> int:
        return min(r, out, inp) * (out + inp)

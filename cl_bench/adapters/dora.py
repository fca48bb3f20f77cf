"""DoRA (Liu et al., ICML 2024, arXiv 2402.09353): a low-rank update of the direction and a magnitude per output row."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..ranges import Amount, Size
from .lora import LoRA

__all__ = ["DoRA"]


class DoRA(LoRA):
    """``m * (W + s B A) / |W + s B A|`` per output row, m starting at W's row norms.

    The norm is a constant in the backward pass, as in PEFT.
    """

    paper: ClassVar[str] = "Liu et al., DoRA, ICML 2024"

    def __init__(self, weight: Tensor, r: Size = 8, alpha: Amount | None = None, rslora: bool = False) -> None:
        super().__init__(weight, r, alpha, rslora)
        self.magnitude = nn.Parameter(weight.norm(dim=1))

    @torch.no_grad()
    def reset(self, weight: Tensor) -> None:
        super().reset(weight)
        self.magnitude.copy_(weight.norm(dim=1))

    def forward(self, weight: Tensor) -> Tensor:
        moved = super().forward(weight)
        norm = moved.detach().norm(dim=1).clamp(min=torch.finfo(moved.dtype).tiny)
        return (self.magnitude / norm).unsqueeze(1) * moved

    def peft_tensors(self) -> tuple[dict[str, Tensor], int, float, dict[str, Any]] | None:
        tensors = {"lora_A.weight": self.A, "lora_B.weight": self.B, "lora_magnitude_vector": self.magnitude}
        return tensors, self.r, self.scale * self.r, {"use_dora": True}

    def read_peft(self, tensors: dict[str, Tensor]) -> None:
        super().read_peft(tensors)
        key = "lora_magnitude_vector" if "lora_magnitude_vector" in tensors else "lora_magnitude_vector.weight"
        self.magnitude.copy_(tensors[key].flatten())

    @classmethod
    def count(cls, out: int, inp: int, r: int = 8, **settings: Any) -> int:
        return super().count(out, inp, r) + out

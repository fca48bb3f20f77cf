"""SVFit (Sun et al., arXiv 2409.05926; no code released): train the top singular values of the weight."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..ranges import Size
from ._base import Adapter

__all__ = ["SVFit"]


class SVFit(Adapter):
    """``W + U_r diag(sigma - sigma_0) V_r``: r numbers per site, in the weight's own directions.

    ``r`` None takes all singular values (CLIP-SVD's form, arXiv 2509.03740). The parameter is the shift
    ``sigma - sigma_0``, so that weight decay pulls to the pretrained value and not to 0.
    """

    paper: ClassVar[str] = "Sun et al., SVFit, arXiv 2409.05926"
    U: Tensor
    V: Tensor

    def __init__(self, weight: Tensor, r: Size | None = None) -> None:
        super().__init__()
        o, i = weight.shape
        self.r = min(o, i) if r is None else min(r, o, i)
        self.shift = nn.Parameter(weight.new_zeros(self.r))
        self.register_buffer("U", weight.new_zeros(o, self.r))
        self.register_buffer("V", weight.new_zeros(self.r, i))
        self.reset(weight)

    @torch.no_grad()
    def reset(self, weight: Tensor) -> None:
        if weight.device.type == "meta":
            return
        u, _, v = torch.linalg.svd(weight.double(), full_matrices=False)
        self.U.copy_(u[:, : self.r])
        self.V.copy_(v[: self.r])
        self.shift.zero_()

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.U * self.shift) @ self.V

    def factors(self) -> tuple[Tensor, Tensor]:
        """(A, B) with the update equal to ``B A``."""
        return self.V, self.U * self.shift

    def peft_tensors(self) -> None:
        """PEFT has no layout of its own for it: the update is stored as a LoRA."""

    @classmethod
    def count(cls, out: int, inp: int, r: int | None = None, **settings: Any) -> int:
        return min(out, inp) if r is None else min(r, out, inp)

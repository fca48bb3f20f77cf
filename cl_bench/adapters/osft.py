"""OSFT (Nayak et al., "Sculpting Subspaces", arXiv 2504.07097): fine-tune a weight's low-energy singular directions only."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..ranges import Share
from ._base import Adapter

__all__ = ["OSFT"]


class OSFT(Adapter):
    """``U_h S_h V_h`` is kept, ``U_l S_l V_l`` is trained with U_l and V_l held orthogonal to the kept directions.

    ``keep`` is the share of the singular directions that is protected, ``k = floor(keep * min(o, i))``, at most all but
    one. ``project_gradients`` removes the protected part of the gradients of U_l and V_l; ``after_step`` removes it from
    U_l and V_l themselves, because Adam's element-wise scaling brings it back. The rule is factor-wise (each of U_l, V_l
    against its own side), stricter than the paper's two-sided projection of the full gradient.
    The adapted weight is ``W + U_l S_l V_l - (its value at the start)``: exactly W at the start.
    """

    paper: ClassVar[str] = "Nayak et al., Sculpting Subspaces (OSFT), ICLR 2026"
    U_high: Tensor
    V_high: Tensor
    low: Tensor

    def __init__(self, weight: Tensor, keep: Share = 0.5) -> None:
        super().__init__()
        o, i = weight.shape
        p = min(o, i)
        self.keep = keep
        self.k = min(int(keep * p), p - 1)
        self.U = nn.Parameter(weight.new_empty(o, p - self.k))
        self.S = nn.Parameter(weight.new_empty(p - self.k))
        self.V = nn.Parameter(weight.new_empty(p - self.k, i))
        self.register_buffer("U_high", weight.new_empty(o, self.k))
        self.register_buffer("V_high", weight.new_empty(self.k, i))
        self.register_buffer("low", weight.new_empty(o, i))
        self.reset(weight)

    @torch.no_grad()
    def reset(self, weight: Tensor) -> None:
        if weight.device.type == "meta":
            return
        u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
        self.U_high.copy_(u[:, : self.k])
        self.V_high.copy_(v[: self.k])
        self.U.copy_(u[:, self.k :])
        self.S.copy_(s[self.k :])
        self.V.copy_(v[self.k :])
        self.low.copy_((self.U * self.S) @ self.V)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + ((self.U * self.S) @ self.V - self.low)

    def after_backward(self) -> None:
        self.project_gradients()

    @torch.no_grad()
    def project_gradients(self) -> None:
        """Take the protected directions out of the gradients of U and V; between backward and step."""
        if self.U.grad is not None:
            self.U.grad -= self.U_high @ (self.U_high.T @ self.U.grad)
        if self.V.grad is not None:
            self.V.grad -= (self.V.grad @ self.V_high.T) @ self.V_high

    @torch.no_grad()
    def after_step(self) -> None:
        self.U -= self.U_high @ (self.U_high.T @ self.U)
        self.V -= (self.V @ self.V_high.T) @ self.V_high

    @classmethod
    def count(cls, out: int, inp: int, keep: float = 0.5, **settings: Any) -> int:
        p = min(out, inp)
        return (out + inp + 1) * (p - min(int(keep * p), p - 1))

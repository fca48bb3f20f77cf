"""CoDyRA's rank-gated LoRA (Lu et al., arXiv 2412.01004, github.com/Artificer-AI-Lab/CoDyRA): one importance per rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..ranges import Amount, Share, Size
from ._base import Adapter
from ._prox import shrink
from .lora import LoRA

__all__ = ["CoDyRA"]


_LEVELS = 50


def walk(iteration: int, total: int, dense_fraction: float, kappa_max: float, released: bool = False) -> float:
    """The proximal step's size after iteration ``iteration`` (from 0) of ``total``; 0 means that there is none.

    ``released`` closes nothing where fewer than 50 iterations are left after the dense ones, as the authors' code does.
    """
    dense = int(dense_fraction * total)
    stride = (total - dense) // _LEVELS
    if iteration <= dense or (released and not stride):
        return 0.0
    if stride:  # the level moves at every multiple of the stride from ``dense`` on, and prunes after it
        level = iteration // stride - (dense - 1) // stride
    else:
        level = 1 + (iteration - dense - 1) * (_LEVELS - 1) // (total - dense)
    return kappa_max * min(level, _LEVELS - 1) / (_LEVELS - 1)


class CoDyRA(LoRA):
    """``W + B diag(w) A`` with gates w ~ N(0, 1), B zero and no further scale; ``threshold`` is the proximal step's size.

    ``after_step`` shrinks the gates by ``threshold`` (0: dense training), which ``steer`` walks through 50 levels from 0 to
    ``kappa_max`` in the second half of training; a gate at exactly zero is closed.
    """

    paper: ClassVar[str] = "Lu et al., CoDyRA, arXiv 2412.01004"

    def __init__(self, weight: Tensor, r: Size = 16, released_prox: bool = False, kappa_max: Amount = 5e-3,
                 dense_fraction: Share = 0.5) -> None:
        super().__init__(weight, r)
        self.kappa_max, self.dense_fraction = kappa_max, dense_fraction
        self.gate = nn.Parameter(torch.randn(self.r).to(weight))
        self.threshold, self.released_prox = 0.0, released_prox

    @torch.no_grad()
    def reset(self, weight: Tensor) -> None:
        super().reset(weight)
        self.gate.normal_()
        self.threshold = 0.0

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.B * self.gate) @ self.A

    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        return self.A, self.B * self.gate  # closed ranks too: a gate at zero has a gradient

    def factors(self) -> tuple[Tensor, Tensor]:
        keep = self.gate != 0
        return self.A[keep], (self.B * self.gate)[:, keep]

    @property
    def open_ranks(self) -> int:
        """How many gates are not closed."""
        return int((self.gate != 0).sum())

    @classmethod
    def steer(cls, adapters: Sequence[Adapter], step: int, total: int) -> None:
        for adapter in adapters:
            if isinstance(adapter, CoDyRA):
                adapter.threshold = walk(step - 1, total, adapter.dense_fraction, adapter.kappa_max)

    def after_step(self) -> None:
        if self.threshold:
            shrink(self.gate, self.threshold, self.released_prox)

    @classmethod
    def count(cls, out: int, inp: int, r: int = 16, **settings: Any) -> int:
        return min(r, out, inp) * (out + inp + 1)

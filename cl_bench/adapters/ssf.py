"""SSF (Lian et al., NeurIPS 2022, arXiv 2210.08823, github.com/dongzelian/SSF): scale and shift a layer's output."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..ranges import Amount
from ._base import Adapter

__all__ = ["SSF"]


class SSF(Adapter):
    """``y = gamma * op(x) + beta`` per output channel of a linear layer, convolution or norm; merged exactly.

    Starts at gamma 1, beta 0. ``std`` draws gamma ~ N(1, std^2), beta ~ N(0, std^2) instead: the published start (0.02),
    which is no no-op. Written as ``gamma W`` and ``gamma b + beta``, which is the same function; a layer without a bias
    gets one of zeros. Weight decay pulls gamma to 0: leave it out.
    """

    paper: ClassVar[str] = "Lian et al., SSF, NeurIPS 2022"
    moves_bias: ClassVar[bool] = True

    def __init__(self, weight: Tensor, std: Amount = 0.0) -> None:
        super().__init__()
        self.gamma = nn.Parameter(weight.new_ones(len(weight)))
        self.beta = nn.Parameter(weight.new_zeros(len(weight)))
        if std:
            nn.init.normal_(self.gamma, 1.0, std)
            nn.init.normal_(self.beta, 0.0, std)

    @torch.no_grad()
    def reset(self, weight: Tensor) -> None:
        self.gamma.fill_(1.0)
        self.beta.zero_()

    def forward(self, weight: Tensor) -> Tensor:
        return self.gamma.unsqueeze(1) * weight

    def bias(self, bias: Tensor) -> Tensor:
        return self.gamma * bias + self.beta

    @classmethod
    def count(cls, out: int, inp: int, **settings: Any) -> int:
        return 2 * out

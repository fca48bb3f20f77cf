"""Pfeiffer adapter (Pfeiffer et al., EACL 2021, arXiv 2005.00247): a bottleneck after a transformer's block."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..ranges import Size
from ._base import Adapter

__all__ = ["Pfeiffer"]


class Pfeiffer(Adapter):
    """``h + U relu(D h)`` on the output h of the matched layer, U and biases zero at the start.

    On whole blocks (``blocks\\.\\d+``) it is Pfeiffer's: it reads the stream after the MLP's residual, as ``seq_bn`` of
    adapter-hub/adapters does on a ViT. On attention and MLP (``blocks\\.\\d+\\.(attn|mlp)``) it reads what they add to the
    stream, where Houlsby et al. (ICML 2019) put their two adapters. The bottleneck r is clipped to the width.
    """

    paper: ClassVar[str] = "Pfeiffer et al., AdapterFusion, EACL 2021"
    mergeable: ClassVar[bool] = False
    level: ClassVar[str] = "layer"

    def __init__(self, layer: nn.Module, index: int, count: int, r: Size = 64) -> None:
        super().__init__()
        linears = [m for m in layer.modules() if isinstance(m, nn.Linear)]
        if not linears:
            raise UserError(f"{type(layer).__name__} has no linear layer to sit behind; match blocks, attention or MLPs.")
        d = linears[-1].out_features
        self.down, self.up = nn.Linear(d, min(r, d)), nn.Linear(min(r, d), d)
        self.reset(torch.empty(0))

    @torch.no_grad()
    def reset(self, weight: Tensor) -> None:
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            zero.zero_()

    def forward(self, layer: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        y = layer(x, *args, **kwargs)
        if isinstance(y, tuple):
            return (y[0] + self.up(F.relu(self.down(y[0]))), *y[1:])
        return y + self.up(F.relu(self.down(y)))

    @classmethod
    def count(cls, out: int, inp: int, r: int = 64, **settings: Any) -> int:
        r = min(r, out)
        return 2 * out * r + out + r

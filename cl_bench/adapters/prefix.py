"""Prefix tuning (Li & Liang, ACL 2021, arXiv 2101.00190): learned keys and values in attention."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..ranges import Size
from ._attention import attend, width_of
from ._base import Adapter

__all__ = ["Prefix"]


class Prefix(Adapter):
    """``n`` learned keys and values (n, d) each, joined after the projections of the matched attention layers.

    Queries and the length of the sequence stay. Drawn from U(0, 0.01), so not a no-op; ``compensate`` is LAE's form
    (its attention mass is normalised by itself). ``learn_scale`` multiplies keys and values by a learned number each, which
    start at 1.
    """

    paper: ClassVar[str] = "Li & Liang, Prefix-Tuning, ACL 2021"
    mergeable: ClassVar[bool] = False
    level: ClassVar[str] = "layer"

    def __init__(
        self, layer: nn.Module, index: int, count: int, n: Size = 10, compensate: bool = False, learn_scale: bool = False
    ) -> None:
        super().__init__()
        d = width_of(layer)
        self.keys = nn.Parameter(torch.empty(n, d).uniform_(0, 0.01))
        self.values = nn.Parameter(torch.empty(n, d).uniform_(0, 0.01))
        self.key_scale: float | nn.Parameter = nn.Parameter(torch.ones(())) if learn_scale else 1.0
        self.value_scale: float | nn.Parameter = nn.Parameter(torch.ones(())) if learn_scale else 1.0
        self.compensate = compensate

    def forward(self, layer: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        keys, values = self.key_scale * self.keys, self.value_scale * self.values
        return attend(layer, x, keys, values, self.compensate, **kwargs)

    @classmethod
    def count(cls, out: int, inp: int, n: int = 10, learn_scale: bool = False, **settings: Any) -> int:
        return 2 * n * inp + 2 * int(learn_scale)

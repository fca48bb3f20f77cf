"""AdaptFormer (Chen et al., NeurIPS 2022, arXiv 2205.13535, github.com/ShoufaChen/AdaptFormer): a bottleneck beside the MLP."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..ranges import Share, Size
from ._attention import width_of
from ._base import Adapter

__all__ = ["AdaptFormer"]

_NORMS = ("norm2", "ln_2", "norm")


class _Seen:
    """Remembers what a layer was given, for the length of one call."""

    def __init__(self) -> None:
        self.x: Tensor | None = None

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.x = inputs[0]


class AdaptFormer(Adapter):
    """``y = layer(x) + s * U act(D x')`` with D Kaiming, U and the biases zero.

    Matched on a whole block (``blocks\\.\\d+``), x' is what enters the block's second norm: the un-normalised stream
    after attention, as published. Matched on a branch itself (``blocks\\.\\d+\\.(mlp|attn)``), x' is the branch's own,
    normalised input (the form of several continual-learning codes). The bottleneck r is clipped to the width.

    Args:
        r: bottleneck width.
        scale: s; with ``learn_scale`` its start.
        act: between the two maps.
        dropout: on the bottleneck while training.
    """

    paper: ClassVar[str] = "Chen et al., AdaptFormer, NeurIPS 2022"
    mergeable: ClassVar[bool] = False
    level: ClassVar[str] = "layer"

    def __init__(
        self,
        layer: nn.Module,
        index: int,
        count: int,
        r: Size = 64,
        scale: float = 0.1,
        learn_scale: bool = False,
        act: Literal["relu", "gelu"] = "relu",
        dropout: Share = 0.1,
    ) -> None:
        super().__init__()
        if act not in ("relu", "gelu"):
            raise UserError(f"act {act!r} is neither relu nor gelu.")
        d = width_of(layer)
        self.down, self.up = nn.Linear(d, min(r, d)), nn.Linear(min(r, d), d)
        self.act, self.dropout = act, dropout
        self.scale: float | nn.Parameter = nn.Parameter(torch.tensor(scale)) if learn_scale else scale
        self.reset(torch.empty(0))

    @torch.no_grad()
    def reset(self, weight: Tensor) -> None:
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            zero.zero_()

    def branch(self, x: Tensor) -> Tensor:
        """The bottleneck alone, tokens (..., d) to (..., d), scaled."""
        h = F.relu(self.down(x)) if self.act == "relu" else F.gelu(self.down(x))
        return self.scale * self.up(F.dropout(h, self.dropout, self.training))

    def forward(self, layer: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        norm = next((getattr(layer, n) for n in _NORMS if hasattr(layer, n) and hasattr(layer, "mlp")), None)
        if norm is None:
            y = layer(x, *args, **kwargs)
            return (y[0] + self.branch(x), *y[1:]) if isinstance(y, tuple) else y + self.branch(x)
        seen = _Seen()
        handle = norm.register_forward_pre_hook(seen)
        try:
            y = layer(x, *args, **kwargs)
        finally:
            handle.remove()
        assert seen.x is not None
        added = self.branch(seen.x)
        if added.ndim == 4 and added.shape != y.shape:  # ConvNeXt's norm sees channels last
            added = added.permute(0, 3, 1, 2)
        return y + added.reshape(y.shape)

    @classmethod
    def count(cls, out: int, inp: int, r: int = 64, learn_scale: bool = False, **settings: Any) -> int:
        r = min(r, inp)
        return 2 * inp * r + inp + r + int(learn_scale)

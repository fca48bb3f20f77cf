"""VPT (Jia et al., ECCV 2022, arXiv 2203.12119, github.com/KMnP/vpt): learned tokens in the sequence."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..ranges import Pixels, Size, Whole
from ._attention import width_of
from ._base import Adapter

__all__ = ["VPTDeep", "VPTShallow"]


class VPTDeep(Adapter):
    """Fresh prompts at every matched block, in place of the last block's prompt outputs; match all blocks.

    Prompts stand behind the ``prefix`` tokens (class token, registers), carry no position, and are taken out after the
    last matched block, so that pooling sees the tokens it knows. Never a no-op: attention shares its mass with them.

    Args:
        p: prompts per block.
        init: ``uniform`` is the paper's U(-v, v), v = sqrt(6 / (3 patch^2 + d)); ``zeros`` LAMDA-PILOT's.
        patch: the patch side that v is computed from.
        prefix: how many tokens stay in front.
    """

    name: ClassVar[str] = "vpt_deep"
    paper: ClassVar[str] = "Jia et al., VPT, ECCV 2022"
    mergeable: ClassVar[bool] = False
    level: ClassVar[str] = "layer"
    deep: ClassVar[bool] = True

    def __init__(
        self,
        layer: nn.Module,
        index: int,
        count: int,
        p: Size = 10,
        init: Literal["uniform", "zeros"] = "uniform",
        patch: Pixels = 16,
        prefix: Whole = 1,
    ) -> None:
        super().__init__()
        if init not in ("uniform", "zeros"):
            raise UserError(f"init {init!r} is neither uniform nor zeros.")
        d = width_of(layer)
        self.p, self.prefix = p, prefix
        self.first, self.last = index == 0, index == count - 1
        bound = math.sqrt(6 / (3 * patch**2 + d)) if init == "uniform" else 0.0
        rows = p if self.deep or self.first else 0
        self.prompt = nn.Parameter(torch.empty(rows, d).uniform_(-bound, bound))

    def forward(self, layer: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if x.ndim != 3:
            raise UserError(
                "visual prompts need blocks over one sequence of tokens (ViT), not windows or feature maps."
            )
        if len(self.prompt):
            rest = x[:, self.prefix :] if self.first else x[:, self.prefix + self.p :]
            x = torch.cat([x[:, : self.prefix], self.prompt.to(x.dtype).expand(len(x), -1, -1), rest], 1)
        y = layer(x, *args, **kwargs)
        return torch.cat([y[:, : self.prefix], y[:, self.prefix + self.p :]], 1) if self.last else y

    @classmethod
    def count(cls, out: int, inp: int, p: int = 10, **settings: Any) -> int:
        return p * inp


class VPTShallow(VPTDeep):
    """Prompts at the first matched block only, running through all of them; match all blocks."""

    name: ClassVar[str] = "vpt_shallow"
    paper: ClassVar[str] = "Jia et al., VPT, ECCV 2022"
    mergeable: ClassVar[bool] = False
    level: ClassVar[str] = "layer"
    deep: ClassVar[bool] = False

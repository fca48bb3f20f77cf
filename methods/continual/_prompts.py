"""Where the prompt methods put their prompts: tokens before the first block, or keys and values in attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cl_bench import Adapter, AdapterSet
from cl_bench.adapters import attend

from ._frozen_trunk import FrozenTrunk


class Slot(Adapter):
    """A place for tensors that a method lends for one forward pass; it owns no parameter and starts empty."""

    mergeable: ClassVar[bool] = False
    level: ClassVar[str] = "layer"

    def __init__(self, layer: nn.Module, index: int, count: int) -> None:
        super().__init__()
        self.first, self.last = index == 0, index == count - 1
        self.lent: Tensor | None = None


class InputTokens(Slot):
    """Prompts (B, m, d) before all tokens of the first block; after the last only theirs go on, folded into the batch.

    Their pooled features are then rows of a batch of B * m images, whatever norm and pooling the trunk has, provided
    that it pools the first token.
    """

    def forward(self, layer: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.lent is None:
            return layer(x, *args, **kwargs)
        if self.first:
            x = torch.cat([self.lent.to(x.dtype), x], 1)
        y = layer(x, *args, **kwargs)
        return y[:, : self.lent.shape[1]].reshape(-1, 1, y.shape[-1]) if self.last else y


class PrefixSlot(Slot):
    """Keys and values (2, n, d) or (2, B, n, d) that join an attention layer's own."""

    def forward(self, layer: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.lent is None:
            return layer(x, *args, **kwargs)
        return attend(layer, x, self.lent[0], self.lent[1], **kwargs)


class Prompted(FrozenTrunk):
    """A method that prompts a frozen transformer and asks it first, without prompts, what it sees."""

    @torch.no_grad()
    def query(self, x: Tensor) -> Tensor:
        """Features (N, d) of the frozen, unprompted backbone."""
        return self.backbone.forward_features(x)

    @contextmanager
    def lent(self, slots: AdapterSet, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Inside, slot k holds ``tensors[k]``."""
        held = [a for _, a in slots.each()]
        try:
            for slot, tensor in zip(held, tensors, strict=True):
                slot.lent = tensor  # type: ignore[assignment]
            yield
        finally:
            for slot in held:
                slot.lent = None  # type: ignore[assignment]

"""The mixture of adapters that SEMA grows: bottlenecks, what they know, and who is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from cl_bench import Adapter
from cl_bench.adapters import width_of
from cl_bench.adapters.adaptformer import AdaptFormer
from cl_bench.ranges import Count, Size


class Expert(nn.Module):
    """One module of a mixture: bottleneck, auto-encoder of the token mean (its descriptor), router row."""

    errors: Tensor

    def __init__(self, layer: nn.Module, r: Size, descriptor: Size, memory: Count) -> None:
        super().__init__()
        d, self.memory = width_of(layer), memory
        self.adapter = AdaptFormer(layer, 0, 1, r=r, scale=1.0, dropout=0.0)
        self.descriptor = nn.Sequential(nn.Linear(d, min(descriptor, d // 6)), nn.Linear(min(descriptor, d // 6), d))
        for part in self.descriptor:
            nn.init.kaiming_uniform_(part.weight, a=5**0.5)  # type: ignore[arg-type]
            nn.init.zeros_(part.bias)  # type: ignore[arg-type]
        self.router = nn.Linear(d, 1)
        self.register_buffer("errors", torch.zeros(0))  # of the last images its descriptor was trained on

    def record(self, errors: Tensor) -> None:
        """Keep errors (B,) of a training pass, as released: the last ``memory`` of them."""
        self.errors = recorded(self.errors, errors, self.memory)

    def error(self, mean: Tensor) -> Tensor:
        """Squared reconstruction error of token means (B, d), per image."""
        return (self.descriptor(mean) - mean).square().mean(1)

    def novelty(self, mean: Tensor) -> Tensor:
        """The batch's mean of :func:`deviation`."""
        return deviation(self.error(mean), self.errors).mean()


def recorded(held: Tensor, errors: Tensor, size: int) -> Tensor:
    """A first-in-first-out record; the batch that fills it is cut to the places left (sema_components.py, Records)."""
    if len(held) < size:
        return torch.cat([held, errors[: size - len(held)]])
    return torch.cat([held, errors])[len(errors) :]


def deviation(errors: Tensor, held: Tensor) -> Tensor:
    """``|error - mu| / sigma`` (B,) against the record; 0 until that has more than two entries."""
    if len(held) <= 2:
        return torch.zeros_like(errors)
    return ((errors - held.mean()) / held.std().clamp(min=1e-12)).abs()


def expands(deviations: Sequence[Tensor], threshold: float) -> bool:
    """Whether a block grows: the smallest over its experts of the batch's mean deviation exceeds the threshold."""
    return min(float(z.mean()) for z in deviations) > threshold


class Mixture(Adapter):
    """Experts beside a block's MLP, mixed by a softmax over their router rows."""

    mergeable: ClassVar[bool] = False
    level: ClassVar[str] = "layer"

    def __init__(self, layer: nn.Module, index: int, count: int, r: Size, descriptor: Size, memory: Count) -> None:
        super().__init__()
        self.experts = nn.ModuleList([Expert(layer, r, descriptor, memory)])
        self.watching = False
        self.seen: list[Tensor] = []  # the token means of the last pass, while watching

    def branch(self, x: Tensor) -> Tensor:
        mean = x.mean(1)
        if self.watching:
            self.seen[:] = [mean.detach()]
        weight = torch.cat([e.router(mean) for e in self.experts], 1).softmax(1)  # type: ignore[operator]
        parts = torch.stack([e.adapter.branch(x) for e in self.experts])  # type: ignore[operator, union-attr]
        return torch.einsum("be,ebnd->bnd", weight, parts)

    forward = AdaptFormer.forward  # type: ignore[assignment]


@contextmanager
def watched(mixtures: Sequence[Mixture]) -> Iterator[None]:
    """Inside, mixtures keep the token means of the last pass."""
    for mixture in mixtures:
        mixture.watching = True
    try:
        yield
    finally:
        for mixture in mixtures:
            mixture.watching, mixture.seen = False, []

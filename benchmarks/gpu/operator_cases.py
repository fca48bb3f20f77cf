"""What each native operator is timed on: inputs of a real size, its definition, and the best that torch alone offers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cl_bench_ops
import torch
from cl_bench_ops import reference
from cl_bench_ops.bench import resnet50_shapes
from torch import Tensor


@dataclass
class Case:
    """One call, in several ways.

    Attributes:
        name: of the operator.
        about: on what.
        sides: ``ours`` and whatever it is compared with: ``definition`` (eager torch), ``foreach``, ``library``.
        moved: bytes that must go through memory: each input read once, each output written once.
        compiled: what ``torch.compile`` is given; None where it is not asked.
        check: how far ours lies from the definition on fresh inputs; 0 is bit for bit.
    """

    name: str
    about: str
    sides: dict[str, Callable[[], Any]]
    moved: int
    compiled: Callable[[], Any] | None = None
    check: Callable[[], float] | None = None
    tags: dict[str, Any] = field(default_factory=dict)


def shapes(full: bool) -> list[tuple[int, ...]]:
    """The parameters of a ResNet-50, or three small tensors to rehearse."""
    return resnet50_shapes() if full else [(64, 3, 7, 7), (64,), (1000, 33)]


def lists(full: bool, dtype: torch.dtype, device: torch.device, count: int, seed: int = 0) -> list[list[Tensor]]:
    """``count`` lists of uniform numbers in [0, 1)."""
    draw = torch.Generator(device).manual_seed(seed)
    return [[torch.rand(shape, generator=draw, device=device).to(dtype) for shape in shapes(full)] for _ in range(count)]


def distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Largest |a - b| / |b|, in float64 norms, over the positions of two lists; NaN where either has one."""
    far = [((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30)) for a, b in zip(ours, theirs, strict=True)]
    return float(torch.stack(far).max()) if far else 0.0


def selective_ema(device: torch.device, dtype: torch.dtype, full: bool) -> list[Case]:
    """A masked moving average over all parameters of a ResNet-50, 3 % of the elements masked."""
    target, source, fill, chance = lists(full, dtype, device, 4)
    mask = [c < 0.03 for c in chance]
    elements = sum(t.numel() for t in target)

    def foreach() -> None:
        kept = [torch.where(m, f, t) for m, f, t in zip(mask, fill, target, strict=True)]
        torch._foreach_mul_(target, 0.999)
        torch._foreach_add_(target, source, alpha=0.001)
        for t, m, k in zip(target, mask, kept, strict=True):
            torch.where(m, k, t, out=t)

    def check() -> float:
        mine, theirs = ([t.clone() for t in target] for _ in range(2))
        cl_bench_ops.selective_ema_(mine, source, mask, 0.999, fill)
        reference.selective_ema_(theirs, source, mask, 0.999, fill)
        return distance(mine, theirs)

    return [Case(
        "selective_ema_", f"{elements:,} elements, filled",
        {"ours": lambda: cl_bench_ops.selective_ema_(target, source, mask, 0.999, fill),
         "definition": lambda: reference.selective_ema_(target, source, mask, 0.999, fill), "foreach": foreach},
        elements * (4 * dtype.itemsize + 1), lambda: reference.selective_ema_(target, source, mask, 0.999, fill), check)]


CASES: list[Callable[[torch.device, torch.dtype, bool], list[Case]]] = [selective_ema]

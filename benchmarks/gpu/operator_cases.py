"""What each native operator is timed on: inputs of a real size, its definition, and the best that torch alone offers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cl_bench_ops
import torch
from cl_bench_ops.bench import resnet50_shapes
from torch import Tensor


@dataclass
class Case:
    """One call, in several ways.

    Attributes:
        name: of the operator.
        about: on what.
        sides: ``ours`` and whatever it is compared with: ``definition`` or ``eager`` torch, ``foreach``.
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
    far = []
    for a, b in zip(ours, theirs, strict=True):
        a, b = a.detach().double(), b.detach().double()
        far.append((a - b).norm() / b.norm().clamp_min(1e-30))
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
        cl_bench_ops.selective_ema_.definition(theirs, source, mask, 0.999, fill)
        return distance(mine, theirs)

    def definition() -> None:
        cl_bench_ops.selective_ema_.definition(target, source, mask, 0.999, fill)

    sides = {"ours": lambda: cl_bench_ops.selective_ema_(target, source, mask, 0.999, fill), "definition": definition,
             "foreach": foreach}
    return [Case("selective_ema_", f"{elements:,} elements, filled", sides, elements * (4 * dtype.itemsize + 1), definition,
                 check)]


def fisher(device: torch.device, dtype: torch.dtype, full: bool) -> list[Case]:
    """Accumulating Fisher information, and its pull on the gradient, over all parameters of a ResNet-50."""
    importance, gradient, value, anchor = lists(full, dtype, device, 4)
    elements = sum(t.numel() for t in importance)
    accumulate, pull = cl_bench_ops.fisher_accumulate_, cl_bench_ops.anchored_penalty_grad_

    def foreach_pull() -> None:
        away = torch._foreach_sub(value, anchor)
        torch._foreach_mul_(away, importance)
        torch._foreach_add_(gradient, away, alpha=2 * 0.3)

    def check(operator: Any, *others: Any) -> float:
        mine, theirs = ([t.clone() for t in importance] for _ in range(2))
        operator(mine, *others, 0.3)
        operator.definition(theirs, *others, 0.3)
        return distance(mine, theirs)

    return [
        Case("fisher_accumulate_", f"{elements:,} elements",
             {"ours": lambda: accumulate(importance, gradient, 1e-3),
              "definition": lambda: accumulate.definition(importance, gradient, 1e-3),
              "foreach": lambda: torch._foreach_addcmul_(importance, gradient, gradient, 1e-3)},
             elements * 3 * dtype.itemsize, lambda: accumulate.definition(importance, gradient, 1e-3),
             lambda: check(accumulate, gradient)),
        Case("anchored_penalty_grad_", f"{elements:,} elements",
             {"ours": lambda: pull(gradient, importance, value, anchor, 1e-6),
              "definition": lambda: pull.definition(gradient, importance, value, anchor, 1e-6), "foreach": foreach_pull},
             elements * 5 * dtype.itemsize, lambda: pull.definition(gradient, importance, value, anchor, 1e-6),
             lambda: check(pull, importance, value, anchor)),
    ]


def entropy(device: torch.device, dtype: torch.dtype, full: bool) -> list[Case]:
    """Entropy of 64 and of 8,192 predictions over 1,000 classes, with its gradient, as TENT and EATA ask for it."""
    cases = []
    for rows in (64, 8192) if full else (8,):
        z = (5 * torch.randn(rows, 1000, device=device)).to(dtype).requires_grad_()
        upstream = torch.full((rows,), 1 / rows, device=device, dtype=torch.promote_types(dtype, torch.float32))

        def ours(z: Tensor = z, upstream: Tensor = upstream) -> tuple[Tensor, ...]:
            h, confidence, reliable, _ = cl_bench_ops.entropy_filter(z, 2.7)
            return (*torch.autograd.grad(h, z, upstream), h, confidence, reliable)

        def eager(z: Tensor = z, upstream: Tensor = upstream) -> tuple[Tensor, ...]:
            wide = z.to(upstream.dtype)
            p = wide.softmax(1)
            h = -(p * wide.log_softmax(1)).sum(1)
            return (*torch.autograd.grad(h, z, upstream), h, p.detach().amax(1), h.detach() < 2.7)

        def forward(z: Tensor = z, upstream: Tensor = upstream) -> tuple[Tensor, ...]:
            wide = z.detach().to(upstream.dtype)
            p, log_p = wide.softmax(1), wide.log_softmax(1)
            h = -(p * log_p).sum(1)
            slope = -upstream.unsqueeze(1) * p * (log_p + h.unsqueeze(1))
            return slope.to(z.dtype), h, p.amax(1), h < 2.7

        def check(ours: Any = ours, eager: Any = eager) -> float:
            return distance(list(ours()[:3]), list(eager()[:3]))

        cases.append(Case("entropy_filter", f"{rows} x 1000, forward and backward", {"ours": ours, "eager": eager},
                          z.numel() * 3 * dtype.itemsize, forward, check))
    return cases


CASES: list[Callable[[torch.device, torch.dtype, bool], list[Case]]] = [selective_ema, fisher, entropy]

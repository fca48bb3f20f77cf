"""What each native operator is timed on: inputs of a real size, its definition, and the best that torch alone offers."""

from __future__ import annotations

import functools
import math
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
        compiled: makes the side of ``torch.compile``; None where it is not asked.
        compiling: seconds that ``torch.compile`` may take.
        check: how far ours lies from the definition on fresh inputs; 0 is bit for bit.
    """

    name: str
    about: str
    sides: dict[str, Callable[[], Any]]
    moved: int
    compiled: Callable[[], Callable[[], Any]] | None = None
    check: Callable[[], float] | None = None
    compiling: float = 25
    tags: dict[str, Any] = field(default_factory=dict)


Shapes = list[tuple[int, ...]]


def shapes(full: bool, dtype: torch.dtype) -> list[Shapes]:
    """The parameters of a ResNet-50, and as many tensors of 16 elements; to rehearse, three small ones."""
    if not full:
        return [[(64, 3, 7, 7), (64,), (1000, 33)]]
    return [resnet50_shapes(), *([[(16,)] * 161] if dtype == torch.float32 else [])]


def lists(of: Shapes, dtype: torch.dtype, device: torch.device, count: int, seed: int = 0) -> list[list[Tensor]]:
    """``count`` lists of uniform numbers in [0, 1)."""
    draw = torch.Generator(device).manual_seed(seed)
    return [[torch.rand(shape, generator=draw, device=device).to(dtype) for shape in of] for _ in range(count)]


def compiling(do: Callable[[], Any], of: Shapes) -> Callable[[], Callable[[], Any]] | None:
    """The compiled side of a list; of many tiny tensors it is the same graph, as long in the making, and is not asked."""
    return (lambda: torch.compile(do, dynamic=False)) if max(math.prod(shape) for shape in of) > 16 else None


def patience(device: torch.device) -> float:
    """Seconds to leave for compiling a list; on a CPU a C++ compiler works for minutes on the loops of 161 tensors."""
    return 25 if device.type == "cuda" else 400


def size(tensors: list[Tensor]) -> str:
    return f"{sum(t.numel() for t in tensors):,} elements in {len(tensors)} tensors"


def distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Largest |a - b| / |b|, in float64 norms, over the positions of two lists; NaN where either has one."""
    far = []
    for a, b in zip(ours, theirs, strict=True):
        a, b = a.detach().double(), b.detach().double()
        far.append((a - b).norm() / b.norm().clamp_min(1e-30))
    return float(torch.stack(far).max()) if far else 0.0


def selective_ema(device: torch.device, dtype: torch.dtype, full: bool) -> list[Case]:
    """A masked moving average over all parameters of a ResNet-50, 3 % of the elements masked."""
    return [_selective_ema(device, dtype, of) for of in shapes(full, dtype)]


def _selective_ema(device: torch.device, dtype: torch.dtype, of: Shapes) -> Case:
    target, source, fill, chance = lists(of, dtype, device, 4)
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
    return Case("selective_ema_", f"{size(target)}, filled", sides, elements * (4 * dtype.itemsize + 1),
                compiling(definition, of), check, patience(device))


def fisher(device: torch.device, dtype: torch.dtype, full: bool) -> list[Case]:
    """Accumulating Fisher information, and its pull on the gradient, over all parameters of a ResNet-50."""
    return [case for of in shapes(full, dtype) for case in _fisher(device, dtype, of)]


def _fisher(device: torch.device, dtype: torch.dtype, of: Shapes) -> list[Case]:
    importance, gradient, value, anchor = lists(of, dtype, device, 4)
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
        Case("fisher_accumulate_", size(importance),
             {"ours": lambda: accumulate(importance, gradient, 1e-3),
              "definition": lambda: accumulate.definition(importance, gradient, 1e-3),
              "foreach": lambda: torch._foreach_addcmul_(importance, gradient, gradient, 1e-3)},
             elements * 3 * dtype.itemsize, compiling(lambda: accumulate.definition(importance, gradient, 1e-3), of),
             lambda: check(accumulate, gradient), patience(device)),
        Case("anchored_penalty_grad_", size(importance),
             {"ours": lambda: pull(gradient, importance, value, anchor, 1e-6),
              "definition": lambda: pull.definition(gradient, importance, value, anchor, 1e-6), "foreach": foreach_pull},
             elements * 5 * dtype.itemsize, compiling(lambda: pull.definition(gradient, importance, value, anchor, 1e-6), of),
             lambda: check(pull, importance, value, anchor), patience(device)),
    ]


def entropy(device: torch.device, dtype: torch.dtype, full: bool) -> list[Case]:
    """Entropy of 64 and of 8,192 predictions over 1,000 classes with its gradient, through autograd, as TENT and EATA ask for
    it, and as one formula that records no graph (what a compiled graph of its own can do)."""
    return [case for rows in ((64, 8192) if full else (8,)) for case in _entropy(device, dtype, rows)]


def _entropy(device: torch.device, dtype: torch.dtype, rows: int) -> list[Case]:
    z = (5 * torch.randn(rows, 1000, device=device)).to(dtype).requires_grad_()
    plain = z.detach()
    upstream = torch.full((rows,), 1 / rows, device=device, dtype=torch.promote_types(dtype, torch.float32))

    def formula(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wide = z.to(upstream.dtype)
        p = wide.softmax(1)
        h = -(p * wide.log_softmax(1)).sum(1)
        return h, p.detach().amax(1), h.detach() < 2.7

    def differentiated(forward: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        h, confidence, reliable, *_ = forward(z)
        return (*torch.autograd.grad(h, z, upstream), h, confidence, reliable)

    def gradient(z: Tensor = plain) -> tuple[Tensor, ...]:
        wide = z.to(upstream.dtype)
        p, log_p = wide.softmax(1), wide.log_softmax(1)
        h = -(p * log_p).sum(1)
        slope = -upstream.unsqueeze(1) * p * (log_p + h.unsqueeze(1))
        return slope.to(z.dtype), h, p.amax(1), h < 2.7

    def ours(z: Tensor) -> tuple[Tensor, ...]:
        return cl_bench_ops.entropy_filter(z, 2.7)

    def kernels() -> tuple[Tensor, ...]:
        h, confidence, reliable, logsumexp = cl_bench_ops.entropy_filter(plain, 2.7)
        return cl_bench_ops.entropy_filter_grad(plain, h, logsumexp, upstream), h, confidence, reliable

    def check(mine: Callable[[], tuple[Tensor, ...]]) -> float:
        return distance(list(mine()[:3]), list(differentiated(formula)[:3]))

    def with_graph() -> tuple[Tensor, ...]:
        return differentiated(ours)

    moved, about = z.numel() * 3 * dtype.itemsize, f"{rows} x 1000, forward and backward"
    return [
        Case("entropy_filter", about, {"ours": with_graph, "eager": lambda: differentiated(formula)}, moved,
             lambda: functools.partial(differentiated, torch.compile(formula, dynamic=False)), lambda: check(with_graph)),
        Case("entropy_filter", f"{about}, no graph", {"ours": kernels, "eager": gradient}, moved,
             lambda: torch.compile(gradient, dynamic=False), lambda: check(kernels)),
    ]


CASES: list[Callable[[torch.device, torch.dtype, bool], list[Case]]] = [selective_ema, fisher, entropy]


def glass(device: torch.device, dtype: torch.dtype, full: bool) -> list[Case]:
    """The shuffle of glass blur at severity 5: CIFAR (delta 1, two passes) and ImageNet (delta 4, two passes)."""
    sizes = ((500, 32, 1), (16, 224, 4)) if full else ((4, 16, 2),)
    return [_glass(device, *of) for of in sizes] if dtype == torch.float32 else []


def _glass(device: torch.device, images: int, side: int, delta: int) -> Case:
    shape, operator = (images, 2, side - 2 * delta, side - 2 * delta), cl_bench_ops.glass_origin
    right, down = (torch.randint(-delta, delta, shape, device=device).float() for _ in range(2))

    def check() -> float:
        mine, theirs = operator(right, down, side, side, delta), operator.definition(right, down, side, side, delta)
        return float((mine != theirs).sum())

    return Case("glass_origin", f"{images} images of {side} x {side}, delta {delta}, two passes",
                {"ours": lambda: operator(right, down, side, side, delta),
                 "definition": lambda: operator.definition(right, down, side, side, delta)},
                8 * right.numel() + 8 * images * side * side, None, check)


def batchnorm_mix(device: torch.device, dtype: torch.dtype, full: bool) -> list[Case]:
    """Mixed batch statistics of the first stage of a ResNet-20 (200 images) and of a ResNet-50 (16 images)."""
    sizes = ((200, 16, 32, 32), (16, 256, 56, 56)) if full else ((2, 3, 8, 8),)
    return [_batchnorm_mix(device, dtype, of, last) for of in sizes for last in (False, True)]


def _batchnorm_mix(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...], last: bool) -> Case:
    operator, wide = cl_bench_ops.batchnorm_mix, torch.promote_types(dtype, torch.float32)
    x = torch.randn(shape, device=device).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    mean, var, weight, bias = (torch.rand(shape[1], device=device, dtype=wide) + 0.5 for _ in range(4))

    def eager(x: Tensor = x) -> tuple[Tensor, ...]:
        own_var, own = torch.var_mean(x.to(wide), (0, 2, 3))
        m, v = mean.lerp(own, 0.1), var.lerp(own_var, 0.1)
        scale = weight * (v + 1e-5).rsqrt()
        return (x * scale.view(1, -1, 1, 1) + (bias - m * scale).view(1, -1, 1, 1)).to(dtype), m, v

    def ours(call: Any = operator) -> tuple[Tensor, ...]:
        made: tuple[Tensor, ...] = call(x, mean, var, weight, bias, 0.1, 1e-5, True)
        return made

    about = " x ".join(map(str, shape)) + (", channels last" if last else "")
    return Case("batchnorm_mix", about, {"ours": ours, "definition": lambda: ours(operator.definition), "eager": eager},
                2 * x.numel() * dtype.itemsize, lambda: torch.compile(eager, dynamic=False),
                lambda: distance(list(ours()), list(ours(operator.definition))))


CASES += [glass, batchnorm_mix]

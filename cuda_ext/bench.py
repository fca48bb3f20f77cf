"""Time compiled operators against their plain-torch definitions, side by side in one process.

``python -m cl_bench_ops.bench [--device cuda] [--dtype bfloat16] [--threads 2]``: the masked moving average over the 161
parameters of a ResNet-50 (25.6 M elements, 3 % of them masked, as PSMT uses it), the two implementations taking turns.
Build the kernels first (``python -m cl_bench_ops build``).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import backend, selective_ema_

Operator = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor] | None, float, Sequence[Tensor] | None], None]


def resnet50_shapes() -> list[tuple[int, ...]]:
    """The shapes of a ResNet-50's parameters: 161 tensors, 25,557,032 elements."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for shape in ((width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)):
                shapes += [shape, (shape[0],), (shape[0],)]
            if block == 0:
                shapes += [(4 * width, inputs, 1, 1), (4 * width,), (4 * width,)]
            inputs = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def milliseconds(operator: Operator, device: torch.device, arguments: tuple) -> float:
    """One call, until the device has done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    operator(*arguments)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - start)


def compare(device: torch.device, dtype: torch.dtype, filled: bool, repeats: int) -> tuple[float, float]:
    """Median milliseconds of (reference, compiled), measured in turns after two calls to warm up."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = resnet50_shapes()
    draw = [[torch.rand(shape, device=device, generator=generator) for shape in shapes] for _ in range(4)]
    target, source, fill = ([x.to(dtype) for x in tensors] for tensors in draw[:3])
    mask = [x < 0.03 for x in draw[3]]
    arguments = (target, source, mask, 0.999, fill if filled else None)
    operators: tuple[Operator, Operator] = (selective_ema_.definition, selective_ema_)
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(-2, repeats):
        for operator, taken in zip(operators, times, strict=True):
            spent = milliseconds(operator, device, arguments)
            if turn >= 0:
                taken.append(spent)
    return statistics.median(times[0]), statistics.median(times[1])


def main(arguments: list[str] | None = None) -> int:
    """Print one line per dtype and form of the operator; status 1 where no kernels are built for the device."""
    parser = argparse.ArgumentParser(prog="python -m cl_bench_ops.bench", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", nargs="*", default=["float32", "float16", "bfloat16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if backend(device) == "reference":
        print(f"No kernels are built for {device.type}; run `python -m cl_bench_ops build` first.", file=sys.stderr)
        return 1
    elements = sum(torch.Size(shape).numel() for shape in resnet50_shapes())
    print(f"selective_ema_ on {device}, {options.threads} threads, {elements:,} elements, medians of {options.repeats} calls")
    print(f"{'dtype':<9} {'masked become':<14} {'reference ms':>12} {'compiled ms':>12} {'speed-up':>9} {'GB/s':>7}")
    for name in options.dtype:
        dtype: torch.dtype = getattr(torch, name)
        for filled in (False, True):
            slow, fast = compare(device, dtype, filled, options.repeats)
            moved = elements * (1 + dtype.itemsize * (4 if filled else 3))
            print(
                f"{name:<9} {'fill' if filled else 'old value':<14} {slow:>12.2f} {fast:>12.2f} {slow / fast:>8.1f}x "
                f"{moved / fast / 1e6:>7.1f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())

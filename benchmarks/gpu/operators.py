"""Every native operator on this device: its distance from the definition, and its time against torch's own ways.

`ms` is a call, as a program waits for it. On a GPU `gpu ms` is what the device alone needs (a CUDA graph of calls, replayed)
and `host ms` what it takes to hand a call over: a call cannot be quicker than the longer of them. GB/s counts the bytes that
must move (each input read once, each output written once) in `gpu ms`, on a CPU in `ms`; the share is of what a copy within
the device moves on the same machine. `definition` is eager torch, `foreach` its multi-tensor functions, `compiled`
torch.compile of the definition. Sizes are a ResNet-50's parameters and ImageNet-sized batches of logits, and, for the cost of
a call, 161 tensors of 16 elements.

    python benchmarks/gpu/operators.py --device cpu --full --out results/speed
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import cl_bench_ops
import torch
from common import Part, issued, milliseconds, queued
from operator_cases import CASES, Case
from table import section


def copy_bandwidth(device: torch.device, full: bool) -> float:
    """GB/s of a copy within the device, bytes read and bytes written counted."""
    count = (2**30 if device.type == "cuda" else 2**28) if full else 2**24
    a = torch.randint(0, 255, (count,), dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * count / milliseconds(lambda: b.copy_(a), device, 10) / 1e6


def matmul_rate(device: torch.device, full: bool) -> float:
    """TFLOP/s of a bfloat16 matrix product on random data."""
    n = (8192 if device.type == "cuda" else 1024) if full else 256
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / milliseconds(lambda: a @ b, device, 10) / 1e9


def measure(part: Part, case: Case, dtype: str, bandwidth: float) -> None:
    """One row."""
    cells: dict[str, Any] = {"operator": case.name, "on": case.about, "dtype": dtype}
    if case.check is not None:
        cells["distance"] = case.check()
    cuda = part.device.type == "cuda"
    repeats = (20 if cuda else 9) if part.full else 3
    sides = dict(case.sides)
    if case.compiled is not None and part.full and dtype == "float32":
        compiled = case.compiled()
        if part.attempt(f"torch.compile of {case.name}", lambda: (compiled(), True)[1], case.compiling):
            sides["compiled"] = compiled
    times = take_turns(sides, part, repeats)
    cells |= {f"{side} ms": t for side, t in times.items()}
    alone = times["ours"]
    if cuda:
        for side in [s for s in ("ours", "foreach", "eager", "compiled") if s in sides]:
            found = part.attempt(f"a graph of {side} {case.name} {dtype}", lambda s=side: queued(sides[s]))  # type: ignore[misc]
            if found is not None:
                cells[f"{side} gpu ms"] = found
        cells["ours host ms"] = issued(sides["ours"], part.device)
        alone = cells.get("ours gpu ms", alone)
    torch._dynamo.reset()
    gigabytes = case.moved / alone / 1e6
    part.row(**cells, **{"GB/s": gigabytes, "share of copy": gigabytes / bandwidth},
             **{f"x {side}": t / times["ours"] for side, t in times.items() if side != "ours"}, **case.tags)


def take_turns(sides: dict[str, Callable[[], Any]], part: Part, repeats: int) -> dict[str, float]:
    """Milliseconds of a call of each side: the median of what three turns of all sides gave."""
    found: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(3):
        for side, do in sides.items():
            found[side].append(milliseconds(do, part.device, -(-repeats // 3)))
    return {side: statistics.median(times) for side, times in found.items()}


def main() -> None:
    """The machine's ceilings, then every case in every dtype."""
    part = Part("operators", __doc__ or "")
    part.content["machine"]["kernels"] = cl_bench_ops.backend(part.device)
    bandwidth = copy_bandwidth(part.device, part.full)
    part.content["machine"] |= {"copy GB/s": bandwidth, "bf16 matmul TFLOP/s": matmul_rate(part.device, part.full)}
    part.write()
    if cl_bench_ops.backend(part.device) == "reference":
        part.skip("all comparisons", "no kernels were built for this device, so ours is the definition")
        return
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for make in (c for c in CASES if not part.options.only or c.__name__ in part.options.only):
            short = str(dtype).removeprefix("torch.")
            for case in part.attempt(f"{make.__name__} {short}", lambda m=make, d=dtype: m(part.device, d, part.full)) or []:
                part.attempt(f"{case.name} {short}", lambda c=case, s=short: measure(part, c, s, bandwidth))  # type: ignore[misc]
    if part.full and part.device.type == "cpu":
        page = ["# Native operators on a CPU", "", "Ratios above 1 say that ours is faster.", "", *section(part.content)[2:]]
        (part.options.out / "operators.md").write_text("\n".join(page).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

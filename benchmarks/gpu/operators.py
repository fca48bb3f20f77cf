"""Every native operator on this device: its distance from the definition, and its time against torch's own ways.

GB/s counts the bytes that must move (each input read once, each output written once); the share is of what a copy from
device to device moves on the same machine. `definition` is eager torch, `foreach` its multi-tensor functions, `compiled`
torch.compile of the definition. Sizes are a ResNet-50's parameters and ImageNet-sized batches of logits and features.
"""

from __future__ import annotations

from typing import Any

import cl_bench_ops
import torch
from common import Part, milliseconds
from operator_cases import CASES, Case


def copy_bandwidth(device: torch.device, full: bool) -> float:
    """GB/s of a copy within the device, bytes read and bytes written counted."""
    count = 2**30 if full else 2**24
    a = torch.randint(0, 255, (count,), dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * count / milliseconds(lambda: b.copy_(a), device, 10) / 1e6


def matmul_rate(device: torch.device, full: bool) -> float:
    """TFLOP/s of a bfloat16 matrix product on random data."""
    n = 8192 if full else 256
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / milliseconds(lambda: a @ b, device, 10) / 1e9


def measure(part: Part, case: Case, dtype: str, bandwidth: float) -> None:
    """One row."""
    cells: dict[str, Any] = {"operator": case.name, "on": case.about, "dtype": dtype}
    if case.check is not None:
        cells["distance"] = case.check()
    repeats = 20 if part.full else 3
    times = {side: milliseconds(do, part.device, repeats) for side, do in case.sides.items()}
    if case.compiled is not None and part.full and dtype == "float32":
        with torch.no_grad():
            compiled = torch.compile(case.compiled, dynamic=False)
            found = part.attempt(f"torch.compile of {case.name}", lambda: milliseconds(compiled, part.device, repeats),
                                 needs=25)
        torch._dynamo.reset()
        if found is not None:
            times["compiled"] = found
    gigabytes = case.moved / times["ours"] / 1e6
    part.row(**cells, **{f"{side} ms": t for side, t in times.items()},
             **{"GB/s": gigabytes, "share of copy": gigabytes / bandwidth},
             **{f"x {side}": t / times["ours"] for side, t in times.items() if side != "ours"}, **case.tags)


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
        for make in CASES:
            short = str(dtype).removeprefix("torch.")
            for case in part.attempt(f"{make.__name__} {short}", lambda m=make, d=dtype: m(part.device, d, part.full)) or []:
                part.attempt(f"{case.name} {short}", lambda c=case, s=short: measure(part, c, s, bandwidth))  # type: ignore[misc]


if __name__ == "__main__":
    main()

"""Where a learning step's time goes, before and after: ResNet-20 on CIFAR-sized images through the engine's own `fit`.

    python benchmarks/speed_profile.py [--steps 40]

Writes results/speed/profile.json.

Each side is a process of its own. Once without a profiler: processor milliseconds per step, how much of them in the kernel,
and pages that were mapped anew (minor faults); then under torch's profiler: each operation's share of the time. `before` is
how torch and glibc do it; `allocator` keeps freed memory, `channels last` changes the layout as well.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SIDES = ("before", "allocator", "channels last")


def side(name: str, steps: int) -> dict[str, Any]:
    """One measurement."""
    sys.path.insert(0, str(HERE / "gpu"))
    import torch
    from learning import SPACE, images, resnet20

    from cl_bench import Experience
    from cl_bench.engine.allocator import keep_memory
    from cl_bench.engine.compute import Compute
    from cl_bench.engine.fit import fit
    from cl_bench.engine.layout import arrange
    from cl_bench.engine.meter import Meter
    from cl_bench.registry import find

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if name != "before":
        keep_memory()
    compute = Compute(device="cpu", layout="channels_last" if name == "channels last" else "contiguous")
    data = images(32 * max(4, steps), 32, torch.device("cpu"))  # the first four warm up, and four are profiled at least

    def learn(count: int) -> None:
        method = find("cl_bench.methods", "finetune")(resnet20(), epochs=1, batch_size=32)
        arrange(method, compute, Meter())
        fit(method, Experience("synthetic", SPACE, data.subset(torch.arange(32 * count))), compute, 0)

    learn(4)
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    learn(steps)
    took, after = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        learn(max(4, steps // 4))
    events = [e for e in profile.key_averages() if not e.key.startswith(("enumerate", "Optimizer", "[pl]", "torch/"))]
    whole = sum(e.self_cpu_time_total for e in events)
    first = sorted(events, key=lambda e: -e.self_cpu_time_total)[:8]
    return {"side": name, "ms a step": 1000 * took / steps, "in the kernel, %": 100 * (after.ru_stime - before.ru_stime) / took,
            "pages mapped a step": (after.ru_minflt - before.ru_minflt) / steps,
            "peak MiB": after.ru_maxrss / 1024,
            "operations": {e.key.removeprefix("aten::"): round(100 * e.self_cpu_time_total / whole, 1) for e in first}}


def main() -> None:
    """All sides, and what they gain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "speed")
    o = parser.parse_args()
    if o.side:
        print(json.dumps(side(o.side, o.steps)))
        return
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    for _ in range(o.turns):
        for name in SIDES:
            words = [sys.executable, __file__, "--side", name, "--steps", str(o.steps)]
            said = subprocess.run(words, check=True, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
            turns[name].append(json.loads(said.stdout.splitlines()[-1]))
            print(turns[name][-1], flush=True)
    rows = [sorted(found, key=lambda r: r["ms a step"])[len(found) // 2] for found in turns.values()]
    for row in rows:
        row["x before"] = rows[0]["ms a step"] / row["ms a step"]
        row["operations"] = ", ".join(f"{k} {v} %" for k, v in row.pop("operations").items())
    sys.path.insert(0, str(HERE / "gpu"))
    import torch
    from common import keep_figures

    torch.set_num_threads(1)
    keep_figures(o.out, "profile", __doc__, rows)


if __name__ == "__main__":
    main()

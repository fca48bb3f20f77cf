"""A sweep of 24 small runs with 1, 2, ... processes and with the number that `--jobs auto` chooses, side by side.

    python benchmarks/sweep_speed.py                     # writes results/speed/sweep.md; about six minutes on two cores
    python benchmarks/sweep_speed.py --jobs 1 --rounds 2 # against one process alone

Every side is the whole command: a fresh interpreter, a fresh folder of records, the page at the end. A round measures every
side once, the next in the opposite order; the table has medians. Other work on the machine is in the column `load`: a
figure is worth something where that is near the number of processes and no more.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
OUT = HERE / "results" / "speed" / "sweep.md"
RUNS = 24
SUITE = """
name: sweep
compute: {{device: cpu}}
grid: {{method.lr: [0.001, 0.003, 0.01, 0.03], method.batch_size: [16, 32], seed: 0..2}}
runs:
  - scenario: split_digits
    methods: [{{class_path: finetune, init_args: {{epochs: {epochs}}}}}]
"""


def timed(jobs: str, epochs: int) -> tuple[float, float]:
    """Wall seconds of the whole command, and the load of the machine in the minute at its end."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sweep.yaml"
        file.write_text(SUITE.format(epochs=epochs))
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "cl_bench.cli", "suite", str(file), "--runs", f"{folder}/runs", "--jobs", jobs,
                        "--tracking", "none"], check=True, cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        took = time.perf_counter() - began
        assert len(list(Path(folder).glob("runs/*/DONE"))) == RUNS
        return took, os.getloadavg()[0]


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--jobs", nargs="+", default=[*map(str, range(1, 2 * cores + 1))], help="processes, beside auto")
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--epochs", type=int, default=4, help="of a run: how small it is")
    o = options.parse_args()
    sides = [*o.jobs, "auto"]
    took: dict[str, list[float]] = {side: [] for side in sides}
    loads: dict[str, list[float]] = {side: [] for side in sides}
    for k in range(o.rounds):
        for side in sides[::-1] if k % 2 else sides:
            seconds, load = timed(side, o.epochs)
            took[side].append(seconds)
            loads[side].append(load)
            print(f"round {k + 1}, --jobs {side}: {seconds:.1f} s, load {load:.1f}", flush=True)
    middle = {side: statistics.median(values) for side, values in took.items()}
    best = min(middle[side] for side in o.jobs)
    each = {side: ", ".join(f"{v:.1f}" for v in took[side]) for side in sides}
    rows = [f"| {side} | {middle[side]:.1f} | {each[side]} | {middle[side] / middle[sides[0]]:.2f} | "
            f"{best / middle[side]:.2f} | {statistics.median(loads[side]):.1f} |" for side in sides]
    text = "\n".join([
        f"# A sweep of {RUNS} small runs", "",
        f"    python benchmarks/sweep_speed.py {' '.join(sys.argv[1:])}".rstrip(), "",
        f"`finetune` ({o.epochs} epochs) on Split-Digits, four learning rates x two batch sizes x three seeds, through "
        "`cl-bench suite`: start of the interpreter, every run and the page. `--jobs auto` is the default.", "",
        f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, {date.today()}; medians over {o.rounds} "
        f"round{'s' if o.rounds > 1 else ''}, all sides in one sitting. `load`: of the machine in the minute at the end of a "
        "side; what is above the number of processes is other work.", "",
        f"| `--jobs` | wall s | each | of the time of {sides[0]} | throughput, of the best number | load |",
        "|---|---|---|---|---|---|", *rows, ""])
    OUT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()

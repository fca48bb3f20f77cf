"""A sweep of 24 small runs with one process and with one per core: wall time of the whole command, and their ratio.

    python benchmarks/sweep_speed.py            # writes results/speed/sweep.md

Both sides start a fresh interpreter and a fresh folder of records; a quiet machine is needed, and its load is in the table.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
SUITE = """
name: sweep
compute: {device: cpu}
grid: {method.lr: [0.001, 0.003, 0.01, 0.03], method.batch_size: [16, 32], seed: 0..2}
runs:
  - scenario: split_digits
    methods: [{class_path: finetune, init_args: {epochs: 4}}]
"""


def timed(jobs: int, folder: Path) -> float:
    (folder / "sweep.yaml").write_text(SUITE)
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "cl_bench.cli", "suite", str(folder / "sweep.yaml"), "--runs", str(folder / "runs"),
                    "--tracking", "none", "--jobs", str(jobs)], check=True, cwd=HERE, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    rows, took = [], {}
    for jobs in (1, cores):
        with tempfile.TemporaryDirectory() as folder:
            load = os.getloadavg()[0]
            took[jobs] = timed(jobs, Path(folder))
            records = [json.loads(f.read_text()) for f in Path(folder).glob("runs/*/run.json")]
            alone = sum(r["cost"]["seconds"]["total"] for r in records) / len(records)
            rows.append(f"| {jobs} | {took[jobs]:.1f} | {alone:.1f} | {took[jobs] / took[1]:.2f} | {load:.1f} |")
    text = "\n".join([
        "# A sweep of 24 small runs", "",
        "Made by `python benchmarks/sweep_speed.py`: `finetune` on Split-Digits, four learning rates x two batch sizes x three "
        "seeds, through `cl-bench suite`, start of the interpreter and page included.", "",
        f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, {date.today()}. `load`: of the machine in "
        "the minute before; above 0.5 other work shared the cores.", "",
        "| processes | wall s | s of one run | of serial | load |", "|---|---|---|---|---|", *rows, ""])
    out = HERE / "results" / "speed" / "sweep.md"
    out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()

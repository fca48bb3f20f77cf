"""What sending to MLflow costs a run: the same run with tracking off and on, side by side in one process.

    python benchmarks/tracking_cost.py --out results/tracking/cost.md

Per repetition it runs one method on one scenario twice, off and on, in an order that alternates. It records the run's
wall time and processor time (this process, all threads), the processor time that its own thread spends in the listener,
what the sending process used and how long the end of the command waited for it. The store is the default one, fresh
in the first repetition: making MLflow's tables is in its numbers.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any


@dataclass
class Measured:
    """Seconds; ``listener`` is processor time of the run's own thread, ``worker`` and ``end`` are 0 with tracking off."""

    tracking: str
    wall: float
    processor: float
    listener: float = 0.0
    events: int = 0
    worker: float = 0.0
    end: float = 0.0


def one(config: Mapping[str, Any], runs: Path, tracked: bool) -> Measured:
    """One run, tracked or not."""
    from cl_bench.command.config import parse, plan_from
    from cl_bench.engine.runner import run
    from cl_bench.records.tracking import Tracker

    plan = plan_from(parse([], config))
    spent: list[float] = []
    tracker = Tracker.open(None, runs)

    def listen(kind: str, facts: Mapping[str, Any]) -> None:
        started = time.thread_time()
        tracker(kind, facts)
        spent.append(time.thread_time() - started)

    wall, own, children = time.perf_counter(), time.process_time(), _children()
    run(plan, runs, listen=listen if tracked else None)
    done = time.perf_counter()
    processor = time.process_time() - own
    tracker.close()
    return Measured("on" if tracked else "off", done - wall, processor, sum(spent), len(spent),
                    _children() - children if tracked else 0.0, time.perf_counter() - done if tracked else 0.0)


def _children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def import_seconds() -> float:
    """Processor time of a process that imports MLflow and does nothing."""
    before = _children()
    subprocess.run([sys.executable, "-c", "import mlflow"], check=True)
    return _children() - before


def table(rows: list[Measured], what: str, command: str, load: float, imported: float) -> str:
    """The Markdown page: every repetition, then the shares."""
    off = [r for r in rows if r.tracking == "off"]
    on = [r for r in rows if r.tracking == "on"]
    work = statistics.median(r.processor for r in off)
    lines = [
        "# What tracking costs a run", "",
        f"`{command}`: {what}, on {platform.machine()} with {os.cpu_count()} cores, one thread per run, Python "
        f"{platform.python_version()}, torch {version('torch')}, MLflow {version('mlflow')}. Seconds, in the order "
        f"measured; the first tracked run also makes the store's tables. Load of the machine at the start: {load:.1f} "
        "(above the number of cores, wall times are stretched; processor times are what counts).", "",
        "| tracking | run, wall | run, processor | listener, processor (run's own thread) | events | "
        "sending process, processor | wait at the end |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(f"| {r.tracking} | {r.wall:.2f} | {r.processor:.2f} | {r.listener:.4f} | {r.events} | {r.worker:.2f} | "
          f"{r.end:.2f} |" for r in rows), "",
    ]
    share = [100 * r.listener / r.processor for r in on]
    own = statistics.median(r.processor for r in on) / statistics.median(r.processor for r in off) - 1
    spread = 100 * (max(r.processor for r in off) / min(r.processor for r in off) - 1)
    lines += [
        f"- The run's own thread spends {statistics.median(share):.3f} % of the run's processor time on tracking "
        f"(at most {max(share):.3f} %).",
        f"- The run's process as a whole uses {100 * own:+.2f} % processor time with tracking on (medians); "
        + (f"the runs without tracking differ by up to {spread:.2f} % among themselves, and what is smaller cannot be told "
           "from noise this way. The line above counts it directly." if len(off) > 1 else
           "one repetition has no spread to judge that by."),
        f"- The sending process uses {statistics.median(r.worker for r in on):.2f} s of processor time at low priority beside "
        f"a run of {work:.2f} s; {imported:.2f} s of that is importing MLflow, the same for a run of any length.",
        f"- After the run the command waits {statistics.median(r.end for r in on):.2f} s for the last batch and the "
        "artifacts.", "",
    ]
    return "\n".join(lines)


def main() -> None:
    p = argparse.ArgumentParser(description="Cost of tracking, off and on side by side.")
    p.add_argument("--scenario", default="split_digits")
    p.add_argument("--method", default="codyra")
    p.add_argument("--epochs", type=int, default=None, help="more epochs make a longer run")
    p.add_argument("--repetitions", type=int, default=3)
    p.add_argument("--out", type=Path, default=None, help="write the Markdown page here")
    o = p.parse_args()
    method: Any = o.method if o.epochs is None else {"class_path": o.method, "init_args": {"epochs": o.epochs}}
    config = {"scenario": o.scenario, "method": method, "compute": {"device": "cpu", "threads": 1}}
    home = Path(tempfile.mkdtemp(prefix="tracking-cost-"))
    rows: list[Measured] = []
    try:
        load = os.getloadavg()[0]
        one({**config, "method": "ncm"}, home / "warm", False)  # imports and caches
        for k in range(o.repetitions):
            for tracked in ((False, True) if k % 2 == 0 else (True, False)):
                rows.append(one(config, home / "runs", tracked))
                print(rows[-1], flush=True)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    given = (("scenario", o.scenario), ("method", o.method), ("epochs", o.epochs), ("repetitions", o.repetitions))
    options = "".join(f" --{name} {value}" for name, value in given if value is not None)
    text = table(rows, f"`{o.scenario}` with `{o.method}`", f"python benchmarks/tracking_cost.py{options}", load,
                 import_seconds())
    print(text)
    if o.out is not None:
        o.out.parent.mkdir(parents=True, exist_ok=True)
        o.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

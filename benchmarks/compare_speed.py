"""How long comparing takes: `cl-bench compare` and the page, from records alone, as processes of their own.

    python benchmarks/compare_speed.py

Writes ``results/compare/speed.md``. The records are synthetic (tests/records.py): learners on two scenarios and test-time
methods, over as many seeds as make the number of runs, with their predictions as the engine keeps them. Wall time and
processor time of the whole command, start included; the smaller of two.
"""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
OUT = HERE / "results" / "compare" / "speed.md"
sys.path.insert(0, str(HERE / "tests"))
sys.path.insert(0, str(HERE / "benchmarks"))
sys.path.insert(0, str(HERE))

import numpy as np  # noqa: E402
import records  # noqa: E402
from scale import answers  # noqa: E402

from cl_bench.records.results import load  # noqa: E402

PER_SEED = 2 * len(records.LEARNERS) + len(records.ADAPTERS)


def keep(folder: Path) -> None:
    """Predictions and truths beside a record, which give its counts."""
    run, kept = load(folder), dict[str, Any]()
    if run.kind == "learn":
        kept = answers(run.matrix)
    for k, entry in enumerate(run.stream.entries):
        truth = np.arange(entry.total, dtype=np.int32) % 10
        said = np.where(np.arange(entry.total) * 7919 % entry.total < entry.correct, truth, (truth + 1) % 10)
        kept |= {f"truth/stream/{k}/{entry.name}": truth, f"stream/{k}/{entry.name}": said.astype(np.int32)}
    np.savez_compressed(folder / "arrays.npz", **kept)


def write(runs: Path, count: int) -> int:
    """At least ``count`` runs; returns how many."""
    os.fsync = lambda fd: None  # a benchmark's data need not survive a power cut
    seeds = -(-count // PER_SEED)
    for seed in range(seeds):
        for method in records.LEARNERS:
            keep(records.write_learner(runs, method, seed))
            keep(records.write_learner(runs, method, seed, scenario="split_glyphs"))
        for method in records.ADAPTERS:
            keep(records.write_adapter(runs, method, seed))
    return seeds * PER_SEED


def seconds(*command: str) -> tuple[float, float]:
    """(wall, processor) seconds of a command."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def served(runs: Path) -> tuple[float, float, int]:
    """Processor seconds of a server's first view of a folder and of an update after one record has changed (the smallest of
    five), and the bytes that an update sends."""
    from cl_bench.compare.dashboard.live import Live
    from cl_bench.compare.dashboard.page import html_of

    version = [0]
    live = Live(runs, "speed", lambda: version[0])
    started = time.process_time()
    html_of(live.text(), "speed", live=True)
    first, updates = time.process_time() - started, []
    record = next(runs.glob("*/run.json"))
    for _ in range(5):
        record.write_bytes(record.read_bytes() + b" ")
        version[0] += 1
        started = time.process_time()
        sent = len(live.changes(version[0] - 1))
        updates.append(time.process_time() - started)
    return first, min(updates), sent


def main() -> None:
    """Measure and write the table."""
    command = [sys.executable, "-m", "cl_bench.command.cli", "compare"]
    lines = [
        "# What comparing costs", "", "    python benchmarks/compare_speed.py", "",
        f"Synthetic records; whole commands, start included, the smaller of two; of a server the first view "
        f"and updates. {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, load", f"{os.getloadavg()[0]:.1f} at the start.", "",
        "| runs | command | wall s | processor s | page MB |", "|---:|---|---:|---:|---:|",
    ]
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        for count in map(int, sys.argv[1:] or (200, 500, 2000)):
            runs = Path(folder) / str(count)
            made, page = write(runs, count), Path(folder) / f"{count}.html"
            for name, more in (("tables", []), ("tables and page", ["--html", str(page)])):
                wall, work = min(seconds(*command, str(runs), *more) for _ in range(2))
                size = f"{page.stat().st_size / 1e6:.2f}" if more else "–"
                lines.append(f"| {made} | {name} | {wall:.2f} | {work:.2f} | {size} |")
                print(lines[-1], flush=True)
            first, update, sent = served(runs)
            lines.append(f"| {made} | served: first view | – | {first:.2f} | – |")
            lines.append(f"| {made} | served: an update, one record changed | – | {update:.3f} | {sent / 1e6:.2f} |")
            print("\n".join(lines[-2:]), flush=True)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""What 10,000 records cost: time, memory and files of `list`, `compare`, `serve`, `sync` and a suite that is called again.

    python benchmarks/scale.py --runs 10000 --folder /tmp/records     # writes results/scale/records.md

The records are synthetic, made by the tests' generator (tests/records.py): their sizes are those of small runs.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import time
import urllib.request
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE / "tests"))
sys.path.insert(0, str(HERE))


def write(folder: Path, count: int) -> None:
    """``count`` records: a grid of a learning rate and seeds over the generator's methods on two scenarios."""
    import records as synthetic

    from cl_bench.records.writer import RunWriter

    os.fsync = lambda fd: None  # a benchmark's data need not survive a power cut
    seeds, n = 10, 0
    folder.mkdir(parents=True, exist_ok=True)
    have = sum(1 for _ in os.scandir(folder))
    while n < count:
        for method in synthetic.LEARNERS:
            for seed in range(seeds):
                if n >= count:
                    return
                lr = 1e-4 * (1 + n // (seeds * len(synthetic.LEARNERS)))
                matrix = synthetic.learner_matrix(method, seed)
                run = synthetic.record("split_digits", method, seed, matrix=matrix, metrics=synthetic.metrics_of_matrix(matrix),
                                       args={"lr": lr}, label=f"{method}(lr={lr:g})")
                if n >= have:
                    with RunWriter(folder / f"r{n:06d}-{method}-s{seed}") as writer:
                        writer.event(kind="start")
                        writer.arrays({"correct": matrix.correct, "total": matrix.total})
                        writer.write(run)
                        writer.done()
                n += 1


def measured(argv: list[str], timeout: float = 1800) -> tuple[float, float, str]:
    """Seconds and peak MiB of one command."""
    began = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    code = ("import resource, sys; from cl_bench.cli import main; code = main(sys.argv[1:]); "
            "print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(code)")
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=timeout, cwd=HERE)
    took = time.perf_counter() - began
    busy = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    peak = [line for line in done.stderr.splitlines() if line.startswith("PEAK")]
    if done.returncode:
        print(done.stderr[-500:], file=sys.stderr)
    return took, busy, f"{int(peak[0].split()[1]) / 1024:.0f}" if peak else f"exit {done.returncode}"


def served(folder: Path) -> tuple[float, float, str]:
    """Until the page is there for the first time, and for the second."""
    began = time.perf_counter()
    code = "import sys; from cl_bench.cli import main; sys.exit(main(sys.argv[1:]))"
    server = subprocess.Popen([sys.executable, "-c", code, "serve", str(folder), "--port", "0"], stdout=subprocess.PIPE,
                              text=True, cwd=HERE)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split(" at ")[1].split()[0]
        page = urllib.request.urlopen(url, timeout=1200).read()
        first = time.perf_counter() - began
        began = time.perf_counter()
        urllib.request.urlopen(url, timeout=1200).read()
        peak = next(line.split()[1] for line in Path(f"/proc/{server.pid}/status").read_text().splitlines() if "VmHWM" in line)
        return first, time.perf_counter() - began, f"{int(peak) / 1024:.0f} MiB, page of {len(page) / 1e6:.1f} MB"
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--runs", type=int, default=10_000)
    options.add_argument("--folder", type=Path, default=Path("/tmp/cl-bench-scale"))
    options.add_argument("--parts", nargs="+", default=["compare", "again", "columns", "serve", "sync"])
    o = options.parse_args()
    folder = o.folder / str(o.runs)
    write(folder, o.runs)
    files = [f for f in folder.rglob("*") if f.is_file() and not any(p.startswith(".") for p in f.relative_to(folder).parts)]
    size = sum(f.stat().st_size for f in files)
    rows = []
    for part in o.parts:
        if part == "serve":
            first, second, note = served(folder)
            rows.append(f"| `serve`, first page | {first:.1f} | | {note} |")
            rows.append(f"| `serve`, the page again | {second:.1f} | | |")
            continue
        argv = {"compare": ["compare", str(folder), "--methods", "ncm(lr=0.0001)", "codyra(lr=0.0001)"],
                "again": ["compare", str(folder), "--methods", "ncm(lr=0.0001)", "codyra(lr=0.0001)"],
                "columns": ["compare", str(folder)], "export": ["export", str(folder), "-o", str(o.folder / "x.zip")],
                "sync": ["sync", str(folder)]}[part]
        name = {"compare": "`compare`, two methods chosen, first scan", "again": "the same again",
                "columns": "`compare`, every row"}.get(part, f"`{part}`")
        took, busy, peak = measured(argv)
        rows.append(f"| {name} | {took:.1f} | {busy:.1f} | {peak} |")
        print(rows[-1], flush=True)
    text = "\n".join([
        f"# {o.runs:,} records", "", f"Made by `python benchmarks/scale.py --runs {o.runs}`: synthetic records of small runs, "
        f"{len(files):,} files, {size / 1e6:.0f} MB.", "",
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.0f} of this and other work, "
        f"Python {platform.python_version()}, {date.today()}: processor time is the fairer column.", "",
        "| command | wall s | processor s | peak MiB |", "|---|---|---|---|", *rows, ""])
    out = HERE / "results" / "scale" / f"records_{o.runs}.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()

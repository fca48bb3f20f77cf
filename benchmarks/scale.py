"""What 10,000 records cost: time and memory of `compare`, its page, `serve`, `list`, `export` and `sync`.

    python benchmarks/scale.py --runs 10000                           # writes results/scale/records_10000.md
    python benchmarks/scale.py --runs 1000 --parts sync import        # ... records_1000.md

The records are synthetic, made by the tests' generator (tests/records.py), with predictions as the engine keeps them; their
sizes are those of small runs. They lie in memory (/dev/shm) where that is to be had: what is measured is the work, not a disk.
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
from typing import Any

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE / "tests"))
sys.path.insert(0, str(HERE))


def answers(matrix: Any) -> dict[str, Any]:
    """Predictions and truths that give the counts of a matrix, two classes to a test set."""
    import numpy as np

    kept = {}
    for j, column in enumerate(matrix.columns):
        truth = np.repeat([2 * j, 2 * j + 1], int(matrix.total[-1, j]) // 2).astype(np.int32)
        kept[f"truth/{column}"] = truth
        for i, row in enumerate(matrix.rows):
            if matrix.total[i, j]:
                wrong = np.arange(truth.size) >= matrix.correct[i, j]
                kept[f"{row}/{column}"] = np.where(wrong, (truth + 2) % 10, truth).astype(np.int32)
    return kept


def write(folder: Path, count: int) -> None:
    """``count`` records: a grid of a learning rate and ten seeds over the generator's methods."""
    import records as synthetic

    from cl_bench.identity import protocol_id
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
                                       args={"lr": lr}, label=f"{method}(lr={lr:g})", fields={"backbone": "tiny_vit"},
                                       reference="upper bound" if method == "joint" else "")
                run["fingerprint"]["id"] = protocol_id(run["fingerprint"]["fields"])
                if n >= have:
                    with RunWriter(folder / f"r{n:06d}-{method}-s{seed}") as writer:
                        writer.event(kind="start")
                        writer.arrays(answers(matrix))
                        writer.write(run)
                        writer.done()
                n += 1


def measured(argv: list[str], timeout: float = 1800) -> tuple[float, float, str]:
    """Seconds and peak MiB of one command."""
    began = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = ("import resource, sys; from cl_bench.cli import main; code = main(sys.argv[1:]); "
            "print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(code)")
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=timeout, cwd=HERE)
    took = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = [line for line in done.stderr.splitlines() if line.startswith("PEAK")]
    if done.returncode:
        print(done.stderr[-500:], file=sys.stderr)
    return took, busy, f"{int(peak[0].split()[1]) / 1024:.0f}" if peak else f"exit {done.returncode}"


def served(folder: Path) -> tuple[tuple[float, float], tuple[float, float], str]:
    """(wall, processor) seconds until the page is there for the first time, and for the second."""
    began = time.perf_counter()
    code = "import sys; from cl_bench.cli import main; sys.exit(main(sys.argv[1:]))"
    server = subprocess.Popen([sys.executable, "-c", code, "serve", str(folder), "--port", "0"], stdout=subprocess.PIPE,
                              text=True, cwd=HERE)

    def busy() -> float:
        fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    try:
        assert server.stdout is not None
        url = server.stdout.readline().split(" at ")[1].split()[0]
        page = urllib.request.urlopen(url, timeout=1200).read()
        first = time.perf_counter() - began, busy()
        began = time.perf_counter()
        urllib.request.urlopen(url, timeout=1200).read()
        second = time.perf_counter() - began, busy() - first[1]
        peak = next(line.split()[1] for line in Path(f"/proc/{server.pid}/status").read_text().splitlines() if "VmHWM" in line)
        return first, second, f"{int(peak) / 1024:.0f}; page of {len(page) / 1e6:.1f} MB"
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--runs", type=int, default=10_000)
    memory = Path("/dev/shm")
    options.add_argument("--folder", type=Path, default=(memory if memory.is_dir() else Path("/tmp")) / "cl-bench-scale")
    options.add_argument("--parts", nargs="+", default=["compare", "chosen", "page", "serve", "list", "export"])
    o = options.parse_args()
    folder = o.folder / str(o.runs)
    write(folder, o.runs)
    files = [f for f in folder.rglob("*") if f.is_file() and not any(p.startswith(".") for p in f.relative_to(folder).parts)]
    size = sum(f.stat().st_size for f in files)
    rows = []
    for part in o.parts:
        if part == "serve":
            first, second, note = served(folder)
            rows.append(f"| `serve`, first page | {first[0]:.1f} | {first[1]:.1f} | {note} |")
            rows.append(f"| `serve`, the page again | {second[0]:.1f} | {second[1]:.1f} | |")
            print(*rows[-2:], sep="\n", flush=True)
            continue
        two = ["--methods", "ncm(lr=0.0001)", "codyra(lr=0.0001)"]
        away = o.folder / f"x{o.runs}"
        argv, name = {
            "compare": (["compare", str(folder)], "`compare`"),
            "chosen": (["compare", str(folder), *two], "`compare` of two methods"),
            "page": (["compare", str(folder), "--html", f"{away}.html"], "`compare --html`"),
            "list": (["list", "methods"], "`list` (reads no record)"),
            "export": (["export", str(folder), "-o", f"{away}.zip"], "`export`"),
            "import": (["import", f"{away}.zip", "--runs", f"{away}-in"], "`import` of that archive"),
            "sync": (["sync", str(folder)], "`sync`, all of them, to SQLite"),
            "resync": (["sync", str(folder)], "`sync` again, nothing new")}[part]
        took, busy, peak = measured(argv)
        for file in (Path(f"{away}.html"), Path(f"{away}.zip")):
            name += f": {file.stat().st_size / 1e6:.1f} MB" if file.exists() and str(file) in argv[2:] else ""
        rows.append(f"| {name} | {took:.1f} | {busy:.1f} | {peak} |")
        print(rows[-1], flush=True)
    text = "\n".join([
        f"# {o.runs:,} records", "", f"Made by `python benchmarks/scale.py {' '.join(sys.argv[1:])}`: synthetic records of "
        f"small runs, {len(files):,} files, {size / 1e6:.0f} MB.", "",
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.0f} of this and other work, "
        f"Python {platform.python_version()}, {date.today()}: processor time is the fairer column.", "",
        "| command | wall s | processor s | peak MiB |", "|---|---|---|---|", *rows, ""])
    out = HERE / "results" / "scale" / f"records_{o.runs}.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()

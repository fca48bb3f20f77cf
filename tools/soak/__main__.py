"""``python -m tools.soak [--quick] [--seed N] [--only K ...]``: exit code 0 where every trial ended as it must."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from .cells import CELLS, QUICK, Cell
from .faults import FAULTS, Broken, Lane, Skipped

COUNTS = {"SIGKILL": 100, "SIGTERM": 12, "full disk": 8, "second resume": 6, "clock set back": 6, "tracking store": 4,
          "worker killed": 3}


def schedule(seed: int, quick: bool) -> list[tuple[str, Cell]]:
    """(fault, cell) of every trial; its number is its place here, and its generator is drawn from seed and number."""
    cells = QUICK if quick else CELLS
    rng = random.Random(f"schedule {seed}")
    trials = []
    for fault, count in ({"SIGKILL": 10} if quick else COUNTS).items():
        order: list[Cell] = []
        while len(order) < count:
            order += rng.sample(cells, len(cells))
        trials += [(fault, cell) for cell in order[:count]]
    return trials


def one(lane: Lane, seed: int, k: int, fault: str, cell: Cell) -> dict[str, Any]:
    """One trial, as a row of the report."""
    here = lane.place / f"trial-{k}"
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir(parents=True)
    row: dict[str, Any] = {"number": k, "fault": fault, "cell": cell.name, "result": "identical", "why": ""}
    try:
        FAULTS[fault](lane, cell, random.Random(f"{seed}/{k}"), here)
    except Skipped as why:
        row.update(result="skipped", why=str(why))
    except (Broken, TimeoutError) as why:
        row.update(result="BROKEN", why=str(why))
    except Exception as why:
        row.update(result="BROKEN", why=f"{type(why).__name__}: {why}")
    if row["result"] != "BROKEN":  # what broke is kept to be looked at
        for path in lane.place.glob(f"trial-{k}*"):
            shutil.rmtree(path)
    return row


def lane(number: int, of: int, place: Path, seed: int, trials: list[tuple[int, str, Cell]], until: float) -> int:
    """One process that forks the runs of its trials; cells are dealt out, so that each is run whole in one lane."""
    import torch

    import cl_bench.cli
    import cl_bench.command.config
    import cl_bench.command.progress
    import cl_bench.compare.tables
    import cl_bench.engine.runner
    import cl_bench.records.tracking  # noqa: F401

    torch.set_num_threads(1)
    mine = Lane(place / f"lane-{number}")
    cells = sorted({cell.name for _, _, cell in trials})
    with open(place / f"rows-{number}.jsonl", "w") as rows:
        for k, fault, cell in trials:
            if cells.index(cell.name) % of != number:
                continue
            if time.monotonic() > until:
                row = {"number": k, "fault": fault, "cell": cell.name, "result": "not tried", "why": "the time was up"}
            else:
                began = time.monotonic()
                row = one(mine, seed, k, fault, cell)
                row["seconds"] = round(time.monotonic() - began, 1)
            rows.write(json.dumps({**row, "kills": mine.kills}) + "\n")
            rows.flush()
    return 0


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m tools.soak", description=__doc__)
    p.add_argument("--seed", type=int, default=0, help="of the schedule (default: 0)")
    p.add_argument("--quick", action="store_true", help="ten kills")
    p.add_argument("--only", type=int, nargs="*", help="replay these numbers")
    p.add_argument("--lanes", type=int, default=2, help="trials at the same time (default: 2)")
    p.add_argument("--minutes", type=float, default=60, help="it stops by itself after this time (default: 60)")
    p.add_argument("--keep", type=Path, help="where runs lie and broken ones stay (default: a temporary folder)")
    o = p.parse_args(argv)
    if not hasattr(os, "fork"):
        print("skipped: this system cannot fork")
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    place = (o.keep or Path(tempfile.mkdtemp(prefix="cl-bench-soak-"))).resolve()
    place.mkdir(parents=True, exist_ok=True)
    trials = [(k, *t) for k, t in enumerate(schedule(o.seed, o.quick)) if not o.only or k in o.only]
    began, until = time.monotonic(), time.monotonic() + 60 * o.minutes
    pids = []
    for number in range(o.lanes):  # before anything that has threads is imported
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = lane(number, o.lanes, place, o.seed, trials, until)
            finally:
                os._exit(code)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    rows = sorted((json.loads(line) for f in place.glob("rows-*.jsonl") for line in f.read_text().splitlines()),
                  key=lambda row: row["number"])
    return report(o, rows, codes, time.monotonic() - began, len(trials), place)


def report(o: argparse.Namespace, rows: list[dict[str, Any]], codes: list[int], seconds: float, wanted: int,
           place: Path) -> int:
    """The figures, and how to replay what broke."""
    print(f"seed {o.seed}, {o.lanes} lanes, {seconds / 60:.0f} min, Python {platform.python_version()}, {platform.system()} "
          f"{platform.machine()}")
    for fault in dict.fromkeys(row["fault"] for row in rows):
        of = [row for row in rows if row["fault"] == fault]
        counts = Counter(row["result"] for row in of)
        tried = len(of) - counts["skipped"] - counts["not tried"]
        more = "".join(f", {n} {what}" for what, n in counts.items() if what in ("skipped", "not tried"))
        print(f"{fault}: {counts['identical']}/{tried} end identical{more}")
    for row in rows:
        if row["result"] in ("BROKEN", "not tried"):
            print(f"{row['result']}: {row['fault']}, {row['cell']}: {row['why']}\n  replay: python -m tools.soak"
                  f" --seed {o.seed}{' --quick' if o.quick else ''} --only {row['number']}")
    for why in {row["why"] for row in rows if row["result"] == "skipped"}:
        print(f"skipped: {why}")
    well = len(rows) == wanted and not any(codes) and all(row["result"] in ("identical", "skipped") for row in rows)
    if well and o.keep is None:
        shutil.rmtree(place)
    elif not well:
        print(f"left in {place} to be looked at; exit codes of the lanes: {codes}", file=sys.stderr)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())

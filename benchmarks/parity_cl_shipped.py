"""The official learners and ours without any alignment: own starts, own batches, own dropout; accuracies side by side.

    python benchmarks/parity_cl_shipped.py --checkouts DIR                 # everything that is missing
    python benchmarks/parity_cl_shipped.py --checkouts DIR --only mos --seeds 10
    python benchmarks/parity_cl_shipped.py --checkouts DIR --only pilot --same-start

The learners, networks and experiences are those of ``parity_cl_reference.py``, which shows that aligned they are equal step
by step; here nothing is copied across and each side draws for itself. The accuracies are the columns "as shipped" of its
table, ``results/parity/cl_reference.md``, which is written again; ``cl_shipped.json`` beside it holds those of every seed.
``--same-start`` tells what of a difference comes from the start: the start is copied, batches and dropout are each side's own,
and the accuracies are printed and not kept.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import multiprocessing
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from official import checkouts, shipped
from parity_cl_reference import HEAD, KINDS, OUT, SHIPPED, as_shipped

Found = dict[str, tuple[float, float]]


def accuracies(folder: Path, name: str, seed: int, start: bool) -> Found:
    """By learner, the accuracies of ours and of the official one after three experiences; ``start``: from ours."""
    shipped.STATE.seed, shipped.STATE.start = seed, start
    module, _, function = KINDS[name].partition(":")
    compare = getattr(importlib.import_module(module), function)
    plain = checkouts.Row.__init__

    def made(self: checkouts.Row, what: str, *rest: object, **more: object) -> None:
        plain(self, what, *rest, **more)  # type: ignore[arg-type]
        shipped.STATE.noted(what)

    checkouts.Row.__init__ = made  # type: ignore[method-assign]
    with checkouts.unpacked(folder, name) as tree, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        compare(tree)
    return shipped.STATE.found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkouts", type=Path, required=True, help="folder with the official repositories")
    there = [k for k in KINDS if k in checkouts.PINS]
    parser.add_argument("--only", nargs="+", choices=there, help="these repositories alone")
    parser.add_argument("--seeds", type=int, default=3, help="how many of each, 1 to N; those that are there are kept")
    parser.add_argument("--again", action="store_true", help="drop what is there of these repositories")
    parser.add_argument("--same-start", action="store_true", help="copy our start; nothing is kept")
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    held = json.loads(SHIPPED.read_text()) if SHIPPED.exists() and not given.same_start else {}
    chosen = given.only or there
    for name in chosen:
        checkouts.found(given.checkouts, name)  # all of them before any work
    for name in chosen:
        found: dict[str, list[tuple[float, float]]] = {} if given.again else held.get(name, {})
        held[name] = found
        for seed in range(1 + max(map(len, found.values()), default=0), given.seeds + 1):
            with multiprocessing.get_context("spawn").Pool(1) as alone:
                for what, pair in alone.apply(accuracies, (given.checkouts.resolve(), name, seed, given.same_start)).items():
                    found.setdefault(what, []).append(pair)
            print(name, seed, {k: v[-1] for k, v in found.items()}, flush=True)
            if not given.same_start:
                SHIPPED.write_text(json.dumps(held, indent=1) + "\n")
    OUT.write_text(checkouts.table(*checkouts.kept(OUT), HEAD, as_shipped()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

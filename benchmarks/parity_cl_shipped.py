"""The official learners and ours without any alignment: own starts, own batches, own dropout; accuracies side by side.

    python benchmarks/parity_cl_shipped.py --checkouts DIR                 # everything; writes results/parity/cl_shipped.md
    python benchmarks/parity_cl_shipped.py --checkouts DIR --only mos

The learners, networks and experiences are those of ``parity_cl_reference.py``, which shows that aligned they are equal step
by step; here nothing is copied across and each side draws for itself.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import multiprocessing
import os
import statistics
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from official import checkouts, shipped
from parity_cl_reference import KINDS

OUT = Path(__file__).resolve().parents[1] / "results" / "parity" / "cl_shipped.json"
SEEDS = (1, 2, 3)
Found = dict[str, tuple[float, float]]


def accuracies(folder: Path, name: str, seed: int) -> Found:
    """By learner, the accuracies of ours and of the official one after three experiences."""
    shipped.STATE.seed = seed
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


def table(held: dict[str, dict[str, list[list[float]]]]) -> str:
    """The page."""
    rows = []
    for name in KINDS:
        for what, pairs in held.get(name, {}).items():
            gaps = [a - b for a, b in pairs]
            mine, theirs = (statistics.fmean(p[side] for p in pairs) for side in (0, 1))
            spread = statistics.stdev(gaps) if len(gaps) > 1 else float("nan")
            rows.append(f"| {what} | {len(pairs)} | {mine:.1f} | {theirs:.1f} | {mine - theirs:+.1f} ± {spread:.1f} |")
    return "\n".join([
        "# Official learners beside ours, as shipped", "",
        "Made by `python benchmarks/parity_cl_shipped.py --checkouts DIR`. Accuracy in percent over six classes after three",
        "experiences of Split-Digits (24 images each) on the embedded ViT, in double precision; the learners of",
        "[cl_reference.md](cl_reference.md) without what aligns them there: each side draws its own start, batches and",
        "dropout. ±: standard deviation of the difference over seeds. A handful of images and steps: single seeds differ by",
        "several points on either side.", "",
        "| learner | seeds | ours | official | difference |", "|---|--:|--:|--:|--:|", *rows, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkouts", type=Path, required=True, help="folder with the official repositories")
    there = [k for k in KINDS if k in checkouts.PINS]
    parser.add_argument("--only", nargs="+", choices=there, help="these repositories alone")
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    held = json.loads(OUT.read_text()) if OUT.exists() else {}
    chosen = given.only or [name for name in there if name not in held]
    for name in chosen:
        checkouts.found(given.checkouts, name)  # all of them before any work
    for name in chosen:
        found: dict[str, list[tuple[float, float]]] = {}
        for seed in SEEDS:
            with multiprocessing.get_context("spawn").Pool(1) as alone:
                for what, pair in alone.apply(accuracies, (given.checkouts.resolve(), name, seed)).items():
                    found.setdefault(what, []).append(pair)
            print(name, seed, {k: v[-1] for k, v in found.items()}, flush=True)
        held[name] = found
        OUT.write_text(json.dumps(held, indent=1) + "\n")
        OUT.with_suffix(".md").write_text(table(held))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

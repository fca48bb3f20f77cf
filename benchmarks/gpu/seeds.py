"""Five seeds of a small suite on one device, with several numbers of processes: runs per minute, start of processes included.

The suite: two learners on Split-Digits and TENT on Digits-C, five seeds each: fifteen runs on embedded data. The record of
every run must be the same whatever the number of processes.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from common import Part

from cl_bench.command.sweep import read_suite, run_suite
from cl_bench.records.results import load

SUITE = """
name: seeds
about: Five seeds.
seeds: [0, 1, 2, 3, 4]
source: {epochs: 2, lr: 0.001, batch_size: 64}
runs:
  - scenario: split_digits
    backbone: glyph_vit
    methods: [{class_path: finetune, init_args: {epochs: 3}}, lora]
  - scenario: digits_c
    backbone: glyph_resnet
    methods: [tent]
"""
CUT = SUITE.replace("[0, 1, 2, 3, 4]", "[0, 1]").replace(", lora]", "]").replace("epochs: 3", "epochs: 1").replace(
    "scenario: split_digits", "scenario: {class_path: split_digits, init_args: {per_class: 12}}").replace(
    "scenario: digits_c", 'scenario: {class_path: digits_c, init_args: {corruptions: ["fog"]}}')


def numbers(folders: list[Path]) -> list[Any]:
    """What a seed determines on a CPU: counts of every run, in the suite's order."""
    records = [load(f).record for f in folders]
    return [(r["matrix"]["correct"], [e["correct"] for e in r["stream"]]) for r in records]


def main() -> None:
    """One row per number of processes."""
    part = Part("seeds", __doc__ or "")
    first: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "seeds.yaml"
        file.write_text(SUITE if part.full else CUT, encoding="utf-8")
        suite = read_suite(file)
        for jobs in (5, 15, 8, 1) if part.full else (2, 1):
            def once(jobs: int = jobs) -> None:
                start = time.perf_counter()
                outcome = run_suite(suite, Path(folder) / str(jobs), jobs=jobs, overrides=["--device", part.options.device])
                seconds = time.perf_counter() - start
                found = numbers(outcome.folders)
                first[:] = first or found
                part.row(processes=jobs, runs=len(outcome.folders), failed=len(outcome.failures), seconds=seconds,
                         **{"runs/min": 60 * len(outcome.folders) / seconds, "runs whose counts differ from the first row": sum(
                             a != b for a, b in zip(first, found, strict=True))})
                for failure in outcome.failures[:3]:
                    part.skip("a run", failure)
            part.attempt(f"{jobs} processes", once, needs=20 if jobs > 1 else 40)


if __name__ == "__main__":
    main()

"""Golden numbers on real digits, as counts. A change that moves them is a change of what cl-bench measures.

Where that is intended: ``python tests/test_golden.py`` writes them anew; say why in the commit message.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_bench.command.config import parse, plan_from
from cl_bench.engine.runner import run
from cl_bench.records.results import load

FOLDER = Path(__file__).parent / "golden"
COMMON = ["--device", "cpu", "--threads", "1", "--checkpoint", "false"]
RUNS: dict[str, list[str]] = {
    "ncm_split_digits": ["--scenario", "split_digits", "--method", "ncm"],
    "finetune_split_digits": ["--scenario", "split_digits", "--scenario.per_class", "40", "--method", "finetune",
                              "--method.epochs", "3"],
    "tent_digits_c": ["--scenario", "digits_c", "--scenario.corruptions", "[gaussian_noise, contrast, jpeg_compression]",
                      "--method", "tent", "--source.epochs", "3"],
}
EXACT = {"ncm_split_digits"}  # nothing is trained: no rounding can grow
SLACK = 2  # images per cell, where another torch or processor rounds differently in training


def processor() -> str:
    """What else decides the last bit: torch picks kernels, and MKL sums, by the kind of processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def measured(name: str, runs: Path) -> dict[str, Any]:
    record = load(run(plan_from(parse([*RUNS[name], *COMMON])), runs)).record
    return {"torch": torch.__version__, "processor": processor(),
            "matrix": {k: record["matrix"][k] for k in ("rows", "columns", "correct", "total")},
            "stream": [[e["name"], e["correct"], e["total"]] for e in record["stream"]]}


def counts(golden: dict[str, Any]) -> list[int | None]:
    cells = [c for row in golden["matrix"]["correct"] for c in row]
    return [*cells, *(correct for _, correct, _ in golden["stream"])]


@pytest.mark.parametrize("name", RUNS)
def test_golden_counts(name: str, tmp_path: Path) -> None:
    file = FOLDER / f"{name}.json"
    golden, now = json.loads(file.read_text(encoding="utf-8")), measured(name, tmp_path)
    advice = f"{name} differs from {file}; if that is intended, run `python tests/test_golden.py` and say why."
    for part in ("rows", "columns", "total"):
        assert now["matrix"][part] == golden["matrix"][part], advice
    assert [(n, t) for n, _, t in now["stream"]] == [(n, t) for n, _, t in golden["stream"]], advice
    same_place = all(golden[key] == now[key] for key in ("torch", "processor"))
    slack = 0 if name in EXACT or same_place else SLACK
    for a, b in zip(counts(now), counts(golden), strict=True):
        assert (a is None) == (b is None) and abs((a or 0) - (b or 0)) <= slack, f"{a} images right, not {b}: {advice}"


def test_golden_numbers_say_something() -> None:
    """Files that hold the field's known picture, not noise."""
    held = {name: json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")) for name in RUNS}
    first = [row[0] for row in held["finetune_split_digits"]["matrix"]["correct"]]
    assert first[0] > 60 and first[-1] < first[0] / 2, "finetune forgets its first two classes"
    last = held["ncm_split_digits"]["matrix"]
    assert sum(last["correct"][-1]) / sum(last["total"][-1]) > 0.8, "prototypes on the frozen backbone hold all ten"
    assert all(correct / total > 0.3 for _, correct, total in held["tent_digits_c"]["stream"])


if __name__ == "__main__":
    import tempfile

    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for key in RUNS:
        with tempfile.TemporaryDirectory() as runs_folder:
            text = json.dumps(measured(key, Path(runs_folder)), indent=1)
        (FOLDER / f"{key}.json").write_text(text + "\n", encoding="utf-8")
        print(f"wrote {FOLDER / key}.json")

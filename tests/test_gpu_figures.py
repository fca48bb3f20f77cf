"""What turns GPU figures into a page, and what makes the checkout importable where nothing is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GPU = ROOT / "benchmarks" / "gpu"


def page(folder: Path) -> str:
    done = subprocess.run([sys.executable, str(GPU / "table.py"), str(folder)], capture_output=True, text=True, check=True)
    return done.stdout


def test_the_page_shows_every_row_what_was_left_out_and_that_a_rehearsal_is_one(tmp_path: Path) -> None:
    part = {"part": "learning", "about": "Steps.", "machine": {"device": "cpu", "torch": "2.11", "rehearsal": True},
            "rows": [{"network": "a", "ours steps/s": 12.345}, {"network": "b", "ours steps/s": None},
                     {"method": "tent", "ok": True}],
            "skipped": ["c: no time"]}
    (tmp_path / "learning.json").write_text(json.dumps(part))
    text = page(tmp_path)
    for line in ("| network | ours steps/s |", "| a | 12.3 |", "| b | – |", "| method | ok |", "| tent | yes |",
                 "- left out: c: no time", "device cpu, torch 2.11", "**A rehearsal without a GPU: its times say nothing.**"):
        assert line in text.splitlines(), line
    part["machine"] = {"device": "cuda", "rehearsal": False}
    (tmp_path / "learning.json").write_text(json.dumps(part))
    assert "rehearsal" not in page(tmp_path)


def test_the_committed_page_is_the_one_that_its_figures_make() -> None:
    folder = ROOT / "results" / "gpu"
    if not list(folder.glob("*.json")):
        pytest.skip("no GPU figures are committed")
    assert (folder / "README.md").read_text(encoding="utf-8") == page(folder)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="reads pyproject.toml with tomllib")
def test_a_checkout_is_importable_without_being_installed(tmp_path: Path) -> None:
    import tomllib

    subprocess.run([sys.executable, str(GPU / "importable.py"), str(tmp_path)], check=True)
    code = ("import cl_bench, cl_bench_ops, cl_bench_methods, cl_bench_scenarios, sys\n"
            "from importlib.metadata import distributions\n"
            "ours = [d for d in distributions(path=[sys.path[0]]) if d.name == 'cl-bench']\n"
            "points = {p.group for d in ours for p in d.entry_points}\n"
            "print(cl_bench.__file__.startswith(sys.path[0]), *sorted(points))")
    done = subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}"],
                          capture_output=True, text=True, check=True)
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    assert done.stdout.split() == ["True", *sorted(groups)]

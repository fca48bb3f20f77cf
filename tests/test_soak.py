"""Endurance in short: ten runs killed at random moments end as if nothing had happened, and the tool would notice if not."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import records

from cl_bench.registry import entries

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.soak.__main__ import COUNTS, schedule  # noqa: E402
from tools.soak.cells import CELLS, QUICK  # noqa: E402
from tools.soak.trial import difference, outcome  # noqa: E402

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@pytest.mark.slow
def test_ten_kills(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tools.soak", "--quick", "--lanes", "1", "--minutes", "12", "--keep", str(tmp_path / "soak")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and "SIGKILL: 10/10 end identical" in done.stdout, done.stdout + done.stderr


def test_a_schedule_is_its_seeds_and_the_whole_one_covers_what_it_says() -> None:
    whole = schedule(0, quick=False)
    assert whole == schedule(0, quick=False) != schedule(1, quick=False)
    kills = [cell for fault, cell in whole if fault == "SIGKILL"]
    assert len(kills) == COUNTS["SIGKILL"] == 100 and len({c.method for c in kills}) >= 20
    families = {e.facts.get("family") for e in entries("cl_bench.methods").values()} - {"interoperation"}  # needs Avalanche
    assert {entries("cl_bench.methods")[c.method].facts["family"] for c in kills} == families
    assert {c.scenario[1] for c in kills} == {"split_digits", "rotated_digits", "digits_c", "deployed_digits",
                                                   "vlm_glyphs", "vlm_glyphs_stream"}
    assert len(schedule(0, quick=True)) == 10 and {c.scenario[1] for c in QUICK} >= {"digits_c", "deployed_digits"}
    assert len({c.name for c in CELLS}) == len(CELLS), "cells are dealt out by their names"


def change(parts: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    parts = copy.deepcopy(parts)
    *way, last = path.split("/")
    at: Any = parts
    for key in way:
        at = at[int(key) if isinstance(at, list) else key]
    at[int(last) if isinstance(at, list) else last] = value
    return parts


@pytest.mark.parametrize(("path", "value"), [
    ("record/matrix/correct/0/0", -1), ("record/metrics/average_accuracy", 0.0), ("record/cost/forward_images", 1),
    ("record/fingerprint/id", "x"), ("events/3/value", 0.5), ("events/0/kind", "x"), ("predictions/correct", "x"),
    ("state", "x")])
def test_any_change_of_what_a_run_left_is_seen(tmp_path: Path, path: str, value: Any) -> None:
    records.write_learner(tmp_path, "lora", 0)
    (tmp_path / "state").write_text('"digest"')
    parts = dict(outcome(tmp_path, tmp_path / "state").parts)
    assert difference(parts, copy.deepcopy(parts)) is None
    found = difference(parts, change(parts, path, value))
    assert found is not None and path.split("/")[0] in found
    assert difference(parts, {**parts, "events": parts["events"][:-1]}) is not None


@pytest.mark.parametrize("left", [".run.json.12.abcdef", "LOCK", "checkpoint"])
def test_a_run_that_is_not_whole_is_no_outcome(tmp_path: Path, left: str) -> None:
    folder = records.write_learner(tmp_path, "lora", 0)
    (folder / left).write_text("")
    with pytest.raises(ValueError, match="left over"):
        outcome(tmp_path, None)
    (folder / left).unlink()
    (folder / "DONE").unlink()
    with pytest.raises(ValueError, match="no finished run"):
        outcome(tmp_path, None)


def test_a_command_that_hangs_is_ended(tmp_path: Path) -> None:
    code = ("import sys; from pathlib import Path; from tools.soak.trial import Child\n"
            "child = Child(['list', 'methods'], Path(sys.argv[1]), lambda writes: __import__('time').sleep(60))\n"
            "try:\n    child.wait(limit=0.5)\nexcept TimeoutError as fault:\n    print(str(fault)[:14])\n"
            "print(Child(['list', 'suites'], Path(sys.argv[1])).wait())\n")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:2] == ["no end after 0", "0"], done.stderr

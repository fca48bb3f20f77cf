"""The scripts that run official code: pinned commits alone; a difference that is meant to be is noticed when it goes."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

HOME = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def checkouts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("official_checkouts", HOME / "benchmarks" / "official" / "checkouts.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_checkout_at_another_commit_is_refused(checkouts: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"has no gpm: git clone https://github\.com/sahagobinda/GPM"):
        checkouts.found(tmp_path, "gpm")
    (tmp_path / "gpm").mkdir()
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "other"]):
        subprocess.run(["git", "-C", str(tmp_path / "gpm"), *words], check=True)
    with pytest.raises(SystemExit, match=r"is at [0-9a-f]{40}, and the comparison is written for 1a238ec9"):
        checkouts.found(tmp_path, "gpm")


def test_an_expected_difference_that_went_away_fails_its_row(checkouts: ModuleType) -> None:
    row = checkouts.Row
    assert row("a", "b", 1e-13, 1e-12).holds and not row("a", "b", 1e-11, 1e-12).holds
    assert row("a", "b", 0.1, 1e-6, expected="AdamW").holds and not row("a", "b", 0.0, 1e-6, expected="AdamW").holds
    assert not row("a", "b", float("nan"), 1e-12).holds and not row("a", "b", float("nan"), 1e-6, expected="AdamW").holds


@pytest.mark.parametrize("name", ["cl_steps", "cl_reference", "cl_metrics", "tta_steps"])
def test_committed_tables_hold_at_the_pinned_commits(checkouts: ModuleType, name: str) -> None:
    text = (HOME / "results" / "parity" / f"{name}.md").read_text()
    assert re.search(r"^\d+ rows equal within their bound, \d+ with a\s+difference.*named, 0 otherwise\.$", text, re.M | re.S)
    told = dict(re.findall(r"^- \w+: ([\w./-]+) at `([0-9a-f]{12})`$", text, re.M))
    pins = {repository: pin[:12] for repository, pin, _ in checkouts.PINS.values()}
    assert told and all(pins[repository] == pin for repository, pin in told.items())


def test_accuracies_as_shipped_stand_once_a_learner_in_the_table(checkouts: ModuleType) -> None:
    rows = [checkouts.Row("slca", "heads", 0.0, 1e-6), checkouts.Row("slca", "logits of 60 test images", 0.0, 1e-6),
            checkouts.Row("slca", "logits by another class", 1.0, 1e-3, expected="why"),
            checkouts.Row("peft", "logits after 12 steps", 0.0, 1e-6)]
    page = checkouts.table(rows, ["slca"], "# Head", checkouts.Beside(("ours", "official"), {"slca": ("90.0", "91.5")}))
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert [line.endswith("| 90.0 | 91.5 |") for line in lines] == [False, False, False, True, False, False]
    assert len({line.count("|") for line in lines}) == 1
    assert "official" not in checkouts.table(rows, ["slca"], "# Head").splitlines()[2]

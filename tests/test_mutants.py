"""The list of small faults fits the code that it is about, and the committed table says that tests see each of them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HOME / "tools"))

import mutants  # noqa: E402
from mutants import Verdict, changed, table  # noqa: E402
from mutants_list import FIELDS, MUTANTS, POSITION, Mutant  # noqa: E402

TABLE = HOME / "results" / "mutants.md"


def test_every_mutant_changes_one_place_that_is_there() -> None:
    stale = [f"{m.file}: {m.what}" for m in MUTANTS
             if (HOME / m.file).read_text(encoding="utf-8").count(m.old) != 1 or m.old == m.new]
    assert not stale, f"tools/mutants_list.py is behind the code: {stale}"
    assert len({(m.area, m.what) for m in MUTANTS}) == len(MUTANTS)


def test_every_mutant_is_python_and_has_tests_that_exist() -> None:
    for m in MUTANTS:
        compile((HOME / m.file).read_text(encoding="utf-8").replace(m.old, m.new), m.file, "exec")
        assert m.tests and all((HOME / t.partition("::")[0]).is_file() for t in m.tests), m.what


def test_what_must_be_among_the_faults_is() -> None:
    """Each field of the fingerprint and of the position, and the places where faults once went unseen."""
    told = {m.what for m in MUTANTS}
    areas = {m.area for m in MUTANTS}
    assert areas >= {"matrix", "engine", "stream", "checkpoint", "protocol", "statistics", "memory", "corruptions"}
    assert {f"the fingerprint forgets `{name}`" for name in FIELDS} <= told and len(FIELDS) >= 15
    assert {f"a checkpoint forgets `{name}` of the position" for name in POSITION} <= told
    assert {"a test set's own batch size is ignored", "events of work that is done again stay", "a backward pass costs one",
            "the reservoir forgets the image at hand: n + 1 is n", "a reset keeps what was born after the mark"} <= told


def test_the_committed_table_names_every_mutant_and_no_survivor() -> None:
    text = TABLE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (.*) \| `(.*)` \| (.*) \|$", text, re.M)
    assert [(a, w, f) for a, w, f, _ in rows] == [(m.area, m.what, m.file) for m in MUTANTS], "run `make mutants` again"
    assert all(seen.startswith("`") or seen == "**killed (time)**" for *_, seen in rows)
    named = re.findall(r"`(test_\w+\.py)::(\w+)", text)
    texts = {f: (HOME / "tests" / f).read_text(encoding="utf-8") for f, _ in named}
    assert len(named) > 100 and not [n for f, n in named if f"def {n}(" not in texts[f]]
    assert f"{len(MUTANTS)} of {len(MUTANTS)} mutants are killed" in text


@pytest.mark.parametrize(("new", "fails"), [("return a + b", False), ("return a - b", True)])
def test_a_fault_is_put_in_judged_and_taken_out(new: str, fails: bool, tmp_path: Path) -> None:
    (tmp_path / "part.py").write_text("def add(a, b):\n    return b + a\n")
    (tmp_path / "test_part.py").write_text("from part import add\n\n\ndef test_add():\n    assert add(1, 2) == 3\n")
    mutant = Mutant("toy", "adds otherwise", "part.py", "return b + a", new, ("test_part.py",))
    with changed(tmp_path, mutant) as there:
        assert there
        failed, seen, _ = mutants.tests_fail(tmp_path, mutant.tests)
    assert failed is fails and (seen == "test_part.py::test_add") is fails
    verdict = mutants.judge(tmp_path, mutant, "test_part.py::test_of_another_name")
    assert verdict.state == ("killed" if fails else "survived"), "a test that is no longer there sees nothing"
    assert (tmp_path / "part.py").read_text() == "def add(a, b):\n    return b + a\n"
    with changed(tmp_path, Mutant("toy", "gone", "part.py", "return c", "", ())) as there:
        assert not there
    verdict = Verdict(mutant, "killed" if fails else "survived", seen)
    assert ("1 of 1 mutants are killed" in table([verdict])) is fails

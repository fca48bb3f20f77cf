"""Names: found without importing, refused with help, one owner each."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest

from cl_bench import registry
from cl_bench.errors import UserError
from cl_bench.registry import GROUPS, entries, find, load_path, name_of

MODULE = '''
"""A file."""
__all__ = ["Alpha", "BetaTwo"]

class Alpha:
    """Does alpha.

    More.
    """
    paper = "Someone, 2020"
    needs = frozenset({"names"})

class BetaTwo:
    """Does beta."""
    name = "beta-2"

class _Hidden: ...
class Unlisted: ...
'''


def test_every_entry_states_what_it_is() -> None:
    for group in ("methods", "scenarios"):
        found = entries(GROUPS[group])
        assert found, f"no {group}"
        for entry in found.values():
            assert entry.summary, f"{entry.name} has no docstring"


def test_listing_imports_nothing_heavy() -> None:
    code = ("import sys; from cl_bench.registry import GROUPS, entries\n"
            "for g in GROUPS.values(): entries(g)\n"
            "heavy = {'torch', 'pytorch_lightning', 'mlflow', 'avalanche', 'timm', 'numpy'} & set(sys.modules)\n"
            "sys.exit(str(heavy) if heavy else 0)")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_unknown_name_says_what_was_meant() -> None:
    with pytest.raises(UserError, match="did you mean finetune"):
        find("cl_bench.methods", "finetunee")
    with pytest.raises(UserError, match="cl-bench list methods"):
        find("cl_bench.methods", "zzzzzz")


def test_source_is_read_not_run(tmp_path: Path) -> None:
    (tmp_path / "alpha.py").write_text(MODULE)
    rows = {name: (summary, facts) for name, summary, facts in registry._offers(tmp_path / "alpha.py")}
    assert set(rows) == {"alpha", "beta-2"}
    assert rows["alpha"][0] == "Does alpha."
    assert rows["alpha"][1]["needs"] == ["names"]


def test_two_owners_of_one_name_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def points(group: str) -> list[EntryPoint]:
        return [SimpleNamespace(name="same", value=f"json:{v}", dist=SimpleNamespace(name=d))  # type: ignore[list-item]
                for v, d in (("loads", "one"), ("dumps", "two"))]
    monkeypatch.setattr(registry, "entry_points", points)
    with pytest.raises(UserError, match="claimed by one and two"):
        entries.__wrapped__("cl_bench.methods")


def test_entry_point_to_nowhere_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    point = SimpleNamespace(name="x", value="no_such_package_at_all", dist=SimpleNamespace(name="bad"))
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    with pytest.raises(UserError, match="bad registers x"):
        entries.__wrapped__("cl_bench.methods")


def test_a_file_outside_any_package(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("class Mine:\n    pass\n")
    cls = load_path(f"{file}:Mine")
    assert cls is load_path(f"{file}:Mine"), "one file, one class"
    assert name_of("cl_bench.methods", cls) == "mine.py:Mine"
    with pytest.raises(UserError, match="Did you mean Mine"):
        load_path(f"{file}:Mone")
    with pytest.raises(UserError, match="no file"):
        load_path(f"{tmp_path}/none.py:Mine")
    with pytest.raises(UserError, match="no module"):
        load_path("no_such_package_at_all.module:Mine")


def test_a_failing_import_keeps_its_own_error(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("raise RuntimeError('boom')\n")
    with pytest.raises(RuntimeError, match="boom"):
        load_path(f"{file}:Mine")

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


@pytest.mark.parametrize(("code", "said"), [
    ("x = 1\nraise RuntimeError('boom')\n", r"RuntimeError: boom \(broken\.py, line 2\)"),
    ("import json\njson.loads('{')\n", r"JSONDecodeError: .*\(broken\.py, line 2\)"),
    ("x = 1\nclass Mine\n", r"SyntaxError: .*\(broken\.py, line 2\)"),
])
def test_a_failing_import_says_where_and_keeps_its_cause(code: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text(code)
    with pytest.raises(UserError, match=said) as failed:
        load_path(f"{file}:Mine")
    assert type(failed.value.__cause__).__name__ == said.partition(":")[0]
    assert not [m for m in sys.modules if m.startswith("cl_bench_user_broken")], "half a module stays behind"


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "my part-1.py").write_text(f"class Mine:\n    home = '{folder}'\n")
    one, two = (load_path(f"{tmp_path}/{folder}/my part-1.py:Mine") for folder in ("one", "two"))
    assert (one.home, two.home) == ("one", "two") and one.__module__ != two.__module__
    assert one.__module__.isidentifier(), "a class path with spaces cannot be read back"
    assert one is load_path(f"{tmp_path}/one/my part-1.py:Mine")


@pytest.mark.parametrize("ending", ["", ":"])
def test_a_file_without_a_class_says_which_it_has(ending: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class Mine:\n    pass\n")
    with pytest.raises(UserError, match=r"say which class of .*mine\.py:Mine\."):
        find("cl_bench.methods", f"{tmp_path}/mine.py{ending}")


LAZY = '''
import torch
from torch.utils.data import Dataset
from cl_bench import Experience, LabelSpace, Scenario, TestSet

class Noise(Dataset):
    def __init__(self, n):
        self.n = n
    def __len__(self):
        return self.n
    def __getitem__(self, i):
        return torch.randint(0, 255, (3, 8, 8), generator=torch.Generator().manual_seed(i), dtype=torch.uint8), i % 2

class Lazy(Scenario):
    """Two classes of noise, read item by item."""
    answers = "all"
    def experiences(self):
        return [Experience("a", LabelSpace((0, 1)), Noise(8))]
    def test_sets(self):
        return [TestSet("a", LabelSpace((0, 1)), Noise(4))]
'''


def test_a_users_data_set_is_read_by_processes_that_begin_anew(tmp_path: Path) -> None:
    """Where processes are spawned, as on macOS and Windows, a data set arrives by the name of its class."""
    (tmp_path / "lazy-data.py").write_text(LAZY)
    (tmp_path / "go.py").write_text(
        "import multiprocessing, sys\nfrom cl_bench.cli import main\n\n"
        "if __name__ == '__main__':\n    multiprocessing.set_start_method('spawn')\n    sys.exit(main(sys.argv[1:]))\n")
    argv = ["run", "--scenario", f"{tmp_path}/lazy-data.py:Lazy", "--method", "ncm", "--device", "cpu", "--workers", "1",
            "--runs", str(tmp_path / "runs"), "--tracking", "none"]
    ran = subprocess.run([sys.executable, str(tmp_path / "go.py"), *argv], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert len(list((tmp_path / "runs").glob("*/DONE"))) == 1


def test_a_class_that_is_refused_costs_the_others_of_its_file_nothing(tmp_path: Path) -> None:
    (tmp_path / "several.py").write_text(
        "from cl_bench import Method\n\n\n"
        "class Bad(Method):\n    def test_step(self, batch, batch_idx):\n        return None\n\n\n"
        "class Worse(Bad): ...\n\n\nclass Odd(Method):\n    adapts = 3\n\n\nclass Good(Method): ...\n\n\n"
        "def make(backbone):\n    return Bad(backbone)\n")
    good = load_path(f"{tmp_path}/several.py:Good")
    for name, why in (("Bad", "Bad overrides test_step, which is final"), ("Worse", "Worse overrides test_step"),
                      ("Odd", r"Odd\.adapts is a int")):
        with pytest.raises(UserError, match=why):
            load_path(f"{tmp_path}/several.py:{name}")
        with pytest.raises(UserError, match=why):
            getattr(sys.modules[good.__module__], name)(None)
    with pytest.raises(UserError, match="Bad overrides test_step"):
        load_path(f"{tmp_path}/several.py:make")(None)
    with pytest.raises(UserError, match="which is final"):  # and elsewhere as it is defined
        type("Later", (good,), {"mark": None})
    registry.spawnable()
    code = f"import sys; sys.path.append({registry._shelf()!r}); import {good.__module__} as m; print(m.Good.__name__)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout == "Good\n", ran.stderr

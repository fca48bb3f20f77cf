"""The digest of a class's source: whatever changes what it does changes it, and nothing else does."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from torch.utils.data import Dataset

from cl_bench.records import source_digest as module
from cl_bench.records.source_digest import UNKNOWN, built_in, code_digest, same, source_digest
from cl_bench.registry import entries, find

MINE = '''"""A method."""
from cl_bench import Method

class Base(Method):
    scale = 1.0

class Mine(Base):
    """Mine."""
'''
FILES = {
    "package/__init__.py": "",
    "package/core/__init__.py": "",
    "package/core/losses.py": "from . import deep\nK = 1\n",
    "package/core/deep.py": "K = 2\n",
    "package/base.py": "class Base:\n    pass\n",
    "package/mine.py": '''from .base import Base
from .core import losses

class Mine(Base):
    def end(self, exp):
        import package.late as late
        from beside import tool
''',
    "package/late.py": "K = 3\n",
    "package/unused.py": "K = 4\n",
    "beside.py": "def tool(): return 5\n",
}


def digest(root: Path, target: str) -> str:
    """As a fresh process in ``root`` sees it."""
    code = ("import sys; from cl_bench.registry import load_path; from cl_bench.records.source_digest import source_digest; "
            "print(source_digest(load_path(sys.argv[1])))")
    done = subprocess.run([sys.executable, "-c", code, target], cwd=root, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def load(file: Path, name: str = "Mine") -> Any:
    """The class of a file, read anew as a fresh process would."""
    spec = importlib.util.spec_from_file_location(f"cl_bench_user_{file.stem}_{time.monotonic_ns()}", file)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return getattr(made, name)


def test_a_files_digest_is_of_its_text_wherever_it_lies(tmp_path: Path) -> None:
    for folder, text in (("a", MINE), ("b", MINE), ("dos", "\ufeff" + MINE.replace("\n", "\r\n") + "\r\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_bytes(text.encode())
    first = source_digest(load(tmp_path / "a" / "mine.py"))
    assert len(first) == 16 and int(first, 16) >= 0
    os.utime(tmp_path / "a" / "mine.py", (1, 1))
    assert source_digest(load(tmp_path / "a" / "mine.py")) == first
    assert source_digest(load(tmp_path / "b" / "mine.py")) == source_digest(load(tmp_path / "dos" / "mine.py")) == first
    assert source_digest(load(tmp_path / "a" / "mine.py", "Base")) != first, "another class of the file is another method"
    (tmp_path / "a" / "mine.py").write_text(MINE.replace("scale = 1.0", "scale = 2.0"))
    assert source_digest(load(tmp_path / "a" / "mine.py")) not in (first, UNKNOWN), "a base in the same file was edited"


def test_code_that_runs_and_is_not_in_its_file_any_more_is_unknown(tmp_path: Path) -> None:
    """A class that was imported before its file was edited, in a session that goes on."""
    text = MINE + "\n    def end(self, exp):\n        return 1\n"
    (tmp_path / "mine.py").write_text(text)
    mine = load(tmp_path / "mine.py")
    before = source_digest(mine)
    (tmp_path / "mine.py").write_text(text.replace("return 1", "return 2"))
    assert before != UNKNOWN == source_digest(mine)
    assert source_digest(load(tmp_path / "mine.py")) not in (before, UNKNOWN)
    (tmp_path / "mine.py").write_text(text)
    assert source_digest(mine) == before


def test_an_edited_file_is_imported_anew_by_its_path(tmp_path: Path) -> None:
    target = f"{tmp_path / 'mine.py'}:Mine"
    (tmp_path / "mine.py").write_text(MINE)
    first = find("cl_bench.methods", target)
    assert find("cl_bench.methods", target) is first
    (tmp_path / "mine.py").write_text(MINE.replace("scale = 1.0", "scale = 2.0"))
    assert (first.scale, find("cl_bench.methods", target).scale) == (1.0, 2.0)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("package")
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root, digest(root, "package.mine:Mine")


@pytest.mark.parametrize("changed", sorted(FILES))
def test_what_a_class_rests_on_is_in_its_digest(changed: str, package: tuple[Path, str], tmp_path: Path) -> None:
    """Its base's file, what these import by relative and absolute names, late imports, a module beside the package."""
    root = tmp_path / "copy"
    shutil.copytree(package[0], root, ignore=shutil.ignore_patterns("__pycache__"))
    with open(root / changed, "a") as file:
        file.write("MORE = 1\n")
    runs_it_not = ("package/unused.py",)
    assert (digest(root, "package.mine:Mine") == package[1]) == (changed in runs_it_not)


def test_where_a_package_lies_and_what_python_keeps_of_it_do_not_matter(package: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(package[0], tmp_path / "elsewhere", ignore=shutil.ignore_patterns("__pycache__"))
    assert digest(tmp_path / "elsewhere", "package.mine:Mine") == package[1]
    stale = package[0] / "package" / "__pycache__"
    stale.mkdir(exist_ok=True)
    (stale / "unused.cpython-311.pyc").write_bytes(b"stale")
    assert digest(package[0], "package.mine:Mine") == package[1]


def test_builtins_rest_on_their_own_files_and_their_private_siblings() -> None:
    seen = {name: {f.name for f in files_of(find("cl_bench.methods", name))} for name in ("tent", "lora", "eata")}
    for name, files in seen.items():
        assert f"{name}.py" in files
        others = {f for f in files if not f.startswith("_")} - {f"{name}.py"}
        assert others <= {"tent.py", "eata.py", "eta.py", "lora.py"}, "a method knows itself and what it inherits"
    digests = [source_digest(e.load()) for e in entries("cl_bench.methods").values()]
    assert UNKNOWN not in digests and len(set(digests)) == len(digests)
    assert all(built_in(e.load()) for e in entries("cl_bench.scenarios").values())
    assert not built_in(type("Mine", (), {"__module__": "mine"}))


def files_of(target: Any) -> set[Path]:
    """The files that a digest reads."""
    read: set[Path] = set()
    module._read.cache_clear()  # a file that was read before is not read again
    real = module.tokenize.open

    class Spy:
        @staticmethod
        def open(file: Path) -> Any:
            read.add(file)
            return real(file)

    old, module.tokenize = module.tokenize, Spy  # type: ignore[assignment,attr-defined]
    try:
        source_digest(target)
    finally:
        module.tokenize = old  # type: ignore[attr-defined]
    return read


def test_no_digest_reads_what_was_installed() -> None:
    """torch, Lightning and timm have versions; cl_bench has its own digest."""
    for group in ("cl_bench.methods", "cl_bench.scenarios", "cl_bench.backbones"):
        for entry in entries(group).values():
            tops = {f.parts for f in files_of(entry.load()) if "torch" in f.parts or "timm" in f.parts}
            assert not tops, entry.name


class Images(Dataset):
    """Stands on torch alone, as a user's own data set does."""


class Network(nn.Module):
    """Stands on torch alone, as a user's own network does."""


@pytest.mark.parametrize("mine", [Images, Network, type("Both", (Images,), {"__module__": __name__})])
def test_a_class_that_stands_on_torch_is_its_own_files(mine: type) -> None:
    files = files_of(mine)
    assert Path(__file__) in files and all(f.parent == Path(__file__).parent for f in files)


NOTEBOOK = '''
import linecache, sys
from cl_bench.records.source_digest import source_digest
space = vars(sys.modules["__main__"])
space.pop("__file__", None)
def cell(n, text):
    linecache.cache[f"<cell {n}>"] = (len(text), None, text.splitlines(True), f"<cell {n}>")
    exec(compile(text, f"<cell {n}>", "exec"), space)
def told(rate="0.1", step="x + 1", extra=""):
    cell(1, "import torch\\nfrom typing import Any, Optional\\nfrom cl_bench import Method")
    cell(2, f"RATE = {rate}\\nx = torch.zeros(1)\\ndef helper(x):\\n    return {step}")
    cell(3, "class Mine(Method):\\n    lr: Optional[Any] = RATE\\n    def end(self, exp):\\n        return helper(2)" + extra)
    return source_digest(space["Mine"])
first = told()
print(first, told() == first, told(rate="0.2") == first, told(step="x + 2") == first, told(extra=" + 1") == first)
print(told(extra="\\n    def begin(self, exp):\\n        return x"))
space["made"] = type("Made", (), {"__module__": "__main__"})
print(source_digest(space["made"]))
'''


def test_a_class_typed_in_a_notebook_is_digested_with_what_it_names_or_is_unknown() -> None:
    done = subprocess.run([sys.executable, "-c", NOTEBOOK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, tensor, made = done.stdout.splitlines()
    assert first.split()[1:] == ["True", "False", "False", "False"] and len(first.split()[0]) == 16
    assert tensor == UNKNOWN, "a tensor of the session has no source"
    assert made == UNKNOWN


def test_unknown_equals_nothing() -> None:
    assert same("a1", "a1") and not same("a1", "b2")
    assert not same(UNKNOWN, UNKNOWN) and not same(None, None) and not same("", "")
    assert source_digest(type("Nowhere", (), {"__module__": "no.such.module"})) == UNKNOWN


def test_the_digest_of_cl_bench_covers_what_makes_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import cl_bench

    root = tmp_path / "cl_bench"
    shutil.copytree(Path(str(cl_bench.__file__)).parent, root, ignore=shutil.ignore_patterns("__pycache__"))
    real = importlib.util.find_spec

    def spec(name: str) -> Any:
        return real(name) if name != "cl_bench" else importlib.util.spec_from_file_location(name, root / "__init__.py")

    monkeypatch.setattr(module.importlib.util, "find_spec", spec)
    first = code_digest.__wrapped__()
    assert first == code_digest(), "a copy of the code elsewhere is the same code"
    for name, matters in (("compare/tables.py", False), ("command/cli.py", False), ("engine/stream.py", True),
                          ("adapters/lora.py", True), ("method.py", True)):
        before = (root / name).read_text()
        (root / name).write_text(before + "\nMORE = 1\n")
        assert (code_digest.__wrapped__() != first) is matters, name
        (root / name).write_text(before)
    assert code_digest.__wrapped__() == first


def test_a_record_says_which_code_made_it(tmp_path: Path) -> None:
    """Of the method and of whatever it, the scenario or the backbone wraps; edited, it is another one."""
    from cl_bench.command.config import parse, plan_from
    from cl_bench.engine.runner import run
    from cl_bench.records import results

    (tmp_path / "scene.py").write_text("from cl_bench.testing import ToyScenario\n\nclass Scene(ToyScenario):\n    pass\n")
    argv = ["--scenario", "online", "--scenario.of", f"{tmp_path / 'scene.py'}:Scene", "--method", "ncm"]
    names = plan_from(parse(argv)).names
    digests = {root: names[root]["source_digest"] for root in ("scenario", "method", "backbone")}
    assert UNKNOWN not in digests.values() and digests["method"] == source_digest(find("cl_bench.methods", "ncm"))
    assert digests["scenario"] != source_digest(find("cl_bench.scenarios", "online")), "the wrapped one counts"
    made = results.load(run(plan_from(parse(["--scenario", "split_digits", "--scenario.per_class", "4", "--method", "ncm"])),
                            tmp_path / "runs"))
    assert made.source_digest == digests["method"] and made.record["environment"]["code_digest"] == code_digest()
    del made.record["method"]["source_digest"]
    assert made.source_digest == UNKNOWN, "an older record does not say"

"""What pip installs: every package, and every file that is not Python but is needed."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[1]
PLACES = {"cl_bench": "cl_bench", "cl_bench_methods": "methods", "cl_bench_scenarios": "scenarios", "cl_bench_ops": "cuda_ext",
          "cl_bench.configs": "configs"}


def stated() -> list[str]:
    """The packages that pyproject.toml lists."""
    text = (HOME / "pyproject.toml").read_text(encoding="utf-8")
    block = text[text.index("packages = [") + len("packages = ["):]
    return [part.strip().strip('"') for part in block[: block.index("]")].split(",") if part.strip()]


def on_disk() -> set[str]:
    found = {"cl_bench.configs"}
    for name, place in PLACES.items():
        for init in (HOME / place).rglob("__init__.py"):
            inside = init.parent.relative_to(HOME / place).parts
            found.add(".".join([name, *inside]))
    return found


def test_no_package_is_forgotten() -> None:
    assert len(stated()) == len(set(stated()))
    assert set(stated()) == on_disk()


def test_no_folder_of_code_lacks_its_init() -> None:
    for place in ("cl_bench", "methods", "scenarios", "cuda_ext"):
        bare = {f.parent for f in (HOME / place).rglob("*.py")} - {f.parent for f in (HOME / place).rglob("__init__.py")}
        assert not bare, f"folders without __init__.py are not installed: {sorted(map(str, bare))}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools, the build backend, is not installed here")
    import setuptools

    if int(setuptools.__version__.partition(".")[0]) < 77:
        pytest.skip(f"the build needs setuptools 77, here is {setuptools.__version__}")
    folder = tmp_path_factory.mktemp("wheel")
    for place in sorted({p.partition("/")[0] for p in PLACES.values()}):
        shutil.copytree(HOME / place, folder / "source" / place, ignore=shutil.ignore_patterns("__pycache__", "*.so", "build"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(HOME / file, folder / "source")
    ran = subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
                          "--disable-pip-version-check", "--wheel-dir", str(folder), str(folder / "source")],
                         capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    (file,) = folder.glob("*.whl")
    return zipfile.ZipFile(file)


@pytest.mark.parametrize(("place", "package", "pattern"), [
    ("cl_bench", "cl_bench", "**/*.py"), ("methods", "cl_bench_methods", "**/*.py"),
    ("scenarios", "cl_bench_scenarios", "**/*.py"), ("cuda_ext", "cl_bench_ops", "**/*.py"),
    ("configs", "cl_bench/configs", "*/*.yaml"), ("cl_bench/backbones/weights", "cl_bench/backbones/weights", "*"),
    ("cl_bench/compare/dashboard/templates", "cl_bench/compare/dashboard/templates", "*"),
    ("cuda_ext/csrc", "cl_bench_ops/csrc", "**/*.*"),
])
def test_the_wheel_holds_every_file(place: str, package: str, pattern: str, wheel: zipfile.ZipFile) -> None:
    held = set(wheel.namelist())
    wanted = {f"{package}/{f.relative_to(HOME / place).as_posix()}" for f in (HOME / place).glob(pattern)
              if f.is_file() and "__pycache__" not in f.parts and f.suffix not in (".so", ".pyc")}
    assert wanted, f"nothing in {place}"
    assert wanted <= held, f"not installed: {sorted(wanted - held)}"


def test_the_wheel_installs_the_command_and_the_groups(wheel: zipfile.ZipFile) -> None:
    (name,) = [n for n in wheel.namelist() if n.endswith(".dist-info/entry_points.txt")]
    text = wheel.read(name).decode()
    assert "cl-bench = cl_bench.cli:main" in text
    for group in ("methods", "scenarios", "backbones", "adapters"):
        assert f"[cl_bench.{group}]" in text


def test_the_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    roots = {n.partition("/")[0] for n in wheel.namelist()}
    assert {r for r in roots if not r.endswith(".dist-info")} == {p for p in PLACES if "." not in p}


def test_it_works_outside_the_checkout(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Unpacked somewhere, away from this checkout: the command finds methods and shipped suites."""
    site = tmp_path / "site"
    wheel.extractall(site)
    code = ("import sys; sys.path.insert(0, sys.argv[1])\n"
            "ours = lambda f: '__editable__' in getattr(f, '__module__', type(f).__module__)\n"
            "sys.meta_path[:] = [f for f in sys.meta_path if not ours(f)]\n"
            "sys.path_hooks[:] = [h for h in sys.path_hooks if '__editable__' not in str(h)]\n"
            "sys.path[:] = [p for p in sys.path if '__editable__' not in p]\n"
            "import cl_bench; assert cl_bench.__file__.startswith(sys.argv[1]), cl_bench.__file__\n"
            "from cl_bench.command.cli import main\n"
            "main(['list', 'methods', '--json']); main(['list', 'suites', '--json'])\n"
            "from cl_bench.command.config import config_file\n"
            "f = config_file('quickstart'); assert str(f).startswith(sys.argv[1]), f\n"
            "import cl_bench_methods as m; assert m.__file__.startswith(sys.argv[1]), m.__file__\n")
    ran = subprocess.run([sys.executable, "-c", code, str(site)], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert '"codyra"' in ran.stdout and '"quickstart"' in ran.stdout

"""The one direction of imports, held by reading the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(f for d in ("cl_bench", "methods", "scenarios", "cuda_ext") for f in (ROOT / d).rglob("*.py"))
CORE = [f for f in FILES if f.is_relative_to(ROOT / "cl_bench")]
PLUGINS = [f for f in FILES if f.is_relative_to(ROOT / "methods") or f.is_relative_to(ROOT / "scenarios")]
NO_TORCH = ("matrix.py", "stream_metrics.py", "results.py", "compare.py", "tables.py", "errors.py", "registry.py",
            "cli.py", "listing.py", "selection.py", "label_free.py", "progress.py", "sweep.py")
ENGINE = {"runner", "config", "tracking", "engine", "streaming", "sweep",
          "checkpoint", "results", "cli", "dashboard", "registry", "seeding"}


def imports(file: Path, top_only: bool = False) -> set[str]:
    """Absolute module names that a file imports; relative ones resolved within its package folder."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found: set[str] = set()
    nodes = _top(tree) if top_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = file.parent
                for _ in range(node.level - 1):
                    base = base.parent
                stem = ".".join(base.relative_to(ROOT).parts)
                module = f"{stem}.{node.module}" if node.module else stem
            else:
                module = node.module or ""
            found.add(module)
            found |= {f"{module}.{a.name}" for a in node.names}
    return found


def _top(tree: ast.Module) -> list[ast.AST]:
    """Statements that run when the module is imported: no function bodies, no TYPE_CHECKING blocks."""
    out: list[ast.AST] = []
    stack: list[ast.AST] = list(tree.body)
    while stack:
        node = stack.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            stack.extend(node.orelse)
            continue
        out.append(node)
        stack.extend(ast.iter_child_nodes(node))
    return out


def names(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", CORE, ids=names)
def test_core_never_imports_a_plugin(file: Path) -> None:
    bad = {m for m in imports(file) if m.split(".")[0] in ("cl_bench_methods", "cl_bench_scenarios", "methods", "scenarios")}
    assert not bad, f"{names(file)} imports {bad}: plugins are found by name"


@pytest.mark.parametrize("file", PLUGINS, ids=names)
def test_plugins_import_only_the_contracts(file: Path) -> None:
    used = imports(file)
    bad = {m for m in used if m.split(".")[0] in ("mlflow", "yaml", "jsonargparse")}
    bad |= {m for m in used if m.startswith("cl_bench.") and m.split(".")[1] in ENGINE}
    other = "scenarios" if file.is_relative_to(ROOT / "methods") else "methods"
    bad |= {m for m in used if m.split(".")[0] in (other, f"cl_bench_{other}")}
    assert not bad, f"{names(file)} imports {bad}"


@pytest.mark.parametrize("file", [f for f in CORE if f.name in NO_TORCH or f.parent.name in ("dashboard", "statistics")],
                         ids=names)
def test_records_and_pages_need_no_torch(file: Path) -> None:
    bad = {m for m in imports(file, top_only=True) if m.split(".")[0] in ("torch", "mlflow", "pytorch_lightning", "timm")}
    assert not bad, f"{names(file)} imports {bad} when it is imported"


@pytest.mark.parametrize("file", FILES, ids=names)
def test_lightning_enters_in_two_places(file: Path) -> None:
    used = {m for m in imports(file) if m.split(".")[0] in ("pytorch_lightning", "lightning", "lightning_fabric")}
    assert not {m for m in used if m.split(".")[0] == "lightning"}, "a module of `lightning` is rejected by pytorch_lightning"
    if names(file) not in ("cl_bench/method.py", "cl_bench/engine.py"):
        assert not used, f"{names(file)} imports {used}"


@pytest.mark.parametrize("file", FILES, ids=names)
def test_no_side_effects_at_import(file: Path) -> None:
    """No seeding, environment, working directory or root-logger work when a module is imported."""
    bad = []
    for node in _top(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            text = ast.unparse(node.func)
            if text in ("os.chdir", "logging.basicConfig", "os.putenv", "random.seed", "np.random.seed", "torch.manual_seed",
                        "numpy.random.seed", "torch.set_num_threads", "torch.set_default_dtype", "os.getenv",
                        "os.environ.get"):
                bad.append(text)
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
            bad.append("os.environ[...]")
    assert not bad, f"{names(file)} does {bad} at import"


@pytest.mark.parametrize("file", FILES, ids=names)
def test_files_stay_readable(file: Path) -> None:
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{names(file)} has {lines} lines"


def test_methods_are_short() -> None:
    """One paper, one file of at most 150 lines."""
    long = {names(f): n for f in PLUGINS if f.is_relative_to(ROOT / "methods") and not f.name.startswith("_")
            and (n := len(f.read_text(encoding="utf-8").splitlines())) > 150}
    assert not long, f"method files over 150 lines: {long}"

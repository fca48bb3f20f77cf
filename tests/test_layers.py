"""The one direction of imports, held by reading the source."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(f for d in ("cl_bench", "methods", "scenarios", "cuda_ext") for f in (ROOT / d).rglob("*.py"))
PROGRAMS = sorted(f for d in ("benchmarks", "tools", "examples") for f in (ROOT / d).rglob("*.py"))
WRITTEN = [*FILES, *PROGRAMS, *sorted((ROOT / "tests").rglob("*.py"))]
CORE = [f for f in FILES if f.is_relative_to(ROOT / "cl_bench")]
PLUGINS = [f for f in FILES if f.is_relative_to(ROOT / "methods") or f.is_relative_to(ROOT / "scenarios")]
# What a place of cl_bench/ may import lies in lines above its own, or in its own folder.
LAYERS = (
    ("errors", "identity", "ranks", "rng", "state", "types"),
    ("ranges", "registry"),
    ("numbers", "data"),
    ("scenario", "heads", "memory", "corruptions"),
    ("backbones",),
    ("adapters",),
    ("method",),
    ("adaptation", "label_free", "records"),
    ("engine",),
    ("testing", "compare"),
    ("command",),
    ("api", "cli"),
)
RANK = {place: rank for rank, places in enumerate(LAYERS) for place in places}
NO_TORCH = ("numbers", "records", "compare", "command")
NO_TORCH_FILES = (
    "errors.py", "identity.py", "ranges.py", "registry.py", "cli.py", "types.py", "scenario.py", "scorers.py",
)
ENGINE = {"engine", "records", "compare", "command", "cli", "label_free", "testing", "api"}


def place(file: Path) -> str:
    """The folder of ``cl_bench/`` that a file lies in, or its own name where it lies at the top."""
    return file.relative_to(ROOT / "cl_bench").parts[0].removesuffix(".py")


def imports(file: Path, top_only: bool = False) -> set[str]:
    """Absolute module names that a file imports; relative ones resolved within its package folder."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return _imports_of(_top(tree) if top_only else list(ast.walk(tree)), file)


def _imports_of(nodes: list[ast.AST], file: Path) -> set[str]:
    found: set[str] = set()
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
    bad |= {m for m in used if _place_of(m) in ENGINE}
    other = "scenarios" if file.is_relative_to(ROOT / "methods") else "methods"
    bad |= {m for m in used if m.split(".")[0] in (other, f"cl_bench_{other}")}
    assert not bad, f"{names(file)} imports {bad}"


@pytest.mark.parametrize("file", [f for f in CORE if place(f) in NO_TORCH or f.name in NO_TORCH_FILES], ids=names)
def test_records_and_pages_need_no_torch(file: Path) -> None:
    bad = {m for m in imports(file, top_only=True) if m.split(".")[0] in ("torch", "mlflow", "pytorch_lightning", "timm")}
    assert not bad, f"{names(file)} imports {bad} when it is imported"


def test_every_place_has_a_layer() -> None:
    places = {place(f) for f in CORE} - {"__init__"}
    assert places == set(RANK), f"say in LAYERS (and in ARCHITECTURE.md) where {places ^ set(RANK)} belong"


@pytest.mark.parametrize("file", [f for f in CORE if place(f) != "__init__"], ids=names)
def test_imports_go_down_the_layers(file: Path) -> None:
    here = place(file)
    above = {other for m in _run_time(file) if (other := _place_of(m)) is not None and other != here
             and RANK[other] >= RANK[here]}
    assert not above, f"{names(file)} is of layer {RANK[here]} ({here}) and imports {above}"


def _run_time(file: Path) -> set[str]:
    """What a file imports when it is imported or when its functions run; not what only type checkers read."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return imports(file, top_only=True) | {m for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef))
                                           for m in _imports_of(list(ast.walk(f)), file)}


def _place_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "cl_bench" and len(parts) > 1 and parts[1] in RANK else None


def test_no_import_circle() -> None:
    """Not even one that a function's own import hides."""
    by_name = {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in (*FILES, *PROGRAMS)}
    arrows = {name: {m for m in _run_time(f) if m in by_name and m != name
                     and not (f.name == "__init__.py" and m.startswith(f"{name}.")) and by_name[m].name != "__init__.py"}
              for name, f in by_name.items()}
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name):], name])
        if name not in done:
            for other in sorted(arrows[name]):
                walk(other, (*path, name))
            done.add(name)

    for name in sorted(arrows):
        walk(name, ())


@pytest.mark.parametrize("file", FILES, ids=names)
def test_lightning_enters_in_two_places(file: Path) -> None:
    used = {m for m in imports(file) if m.split(".")[0] in ("pytorch_lightning", "lightning", "lightning_fabric")}
    assert not {m for m in used if m.split(".")[0] == "lightning"}, "a module of `lightning` is rejected by pytorch_lightning"
    if names(file) not in ("cl_bench/method.py",) and not names(file).startswith("cl_bench/engine/"):
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


@pytest.mark.parametrize("file", WRITTEN, ids=names)
def test_files_stay_readable(file: Path) -> None:
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{names(file)} has {lines} lines"


def test_methods_are_short() -> None:
    """One paper, one file of 15 to 150 lines."""
    odd = {names(f): n for f in PLUGINS if f.is_relative_to(ROOT / "methods") and not f.name.startswith("_")
           and not 15 <= (n := len(f.read_text(encoding="utf-8").splitlines())) <= 150}
    assert not odd, f"method files of other than 15 to 150 lines: {odd}"


def test_the_architecture_page_shows_these_layers() -> None:
    """Its table has one line per layer, in this order, with these places."""
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    shown = [set(re.findall(r"[a-z_]+", line)) for line in re.findall(r"^[1-9][0-9]*\s+(.*?)\s{3,}", page, re.M)]
    assert shown == [set(places) for places in LAYERS]


def stated(file: str, cls: str) -> set[str]:
    """The fields that a contract states: annotated, assigned, or a property."""
    (body,) = [node.body for node in ast.parse((ROOT / "cl_bench" / file).read_text(encoding="utf-8")).body
               if isinstance(node, ast.ClassDef) and node.name == cls]
    return {node.target.id for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)} | {
        t.id for node in body if isinstance(node, ast.Assign) for t in node.targets if isinstance(t, ast.Name)} | {
        node.name for node in body if isinstance(node, ast.FunctionDef)
        and any(isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list)}


STEPS = {"Experience", "TestSet"}
FIELDS = stated("scenario.py", "Scenario") | stated("method.py", "Method") | {
    field for step in STEPS for field in stated("types.py", step)}


# The checker judges what may keep no contract at all; the help of a part tells of functions too, which have no such fields.
JUDGES = ("testing/", "command/part_help.py")


@pytest.mark.parametrize("file", [f for f in (*FILES, *PROGRAMS) if not any(j in names(f) for j in JUDGES)], ids=names)
def test_contracts_are_not_asked_for_by_chance(file: Path) -> None:
    """No ``getattr(x, "field", default)`` on a contract's field, which would go unnoticed where it was forgotten; no
    ``isinstance`` on kinds of steps, which have handlers."""
    bad = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            asked = node.args[1].value if len(node.args) == 3 and isinstance(node.args[1], ast.Constant) else None
            if node.func.id == "getattr" and asked in FIELDS and str(asked).islower():
                bad.append(ast.unparse(node))
            if node.func.id == "isinstance" and STEPS & set(re.findall(r"\w+", ast.unparse(node.args[1]))):
                bad.append(ast.unparse(node))
    assert not bad, f"{names(file)}: {bad}"

"""Finds methods, scenarios, backbones and adapter kinds by name, through entry points, one import at a time.

An entry point of a group names either one object (``package.module:Class``) or a package. A package is scanned: every
file's ``__all__`` lists what it offers, read from the source without importing it, so that listing a hundred methods
imports none and a new method is one new file. Our own methods come in by the same door as a third party's.
"""

from __future__ import annotations

import ast
import atexit
import difflib
import hashlib
import importlib
import importlib.util
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import UserError, putting_off, refused, told

__all__ = ["GROUPS", "Entry", "describe", "entries", "find", "load_path", "name_of", "spawnable"]

GROUPS = {
    "methods": "cl_bench.methods",
    "scenarios": "cl_bench.scenarios",
    "backbones": "cl_bench.backbones",
    "adapters": "cl_bench.adapters",
    "launchers": "cl_bench.launchers",
    "metrics": "cl_bench.metrics",
    "steps": "cl_bench.steps",
}


@dataclass(frozen=True)
class Entry:
    """One name: where its object lives and what its source says of it."""

    name: str
    target: str
    distribution: str
    summary: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def load(self) -> Any:
        """Import exactly this object; a failing import keeps its own traceback."""
        module, _, attribute = self.target.partition(":")
        return getattr(importlib.import_module(module), attribute)


def snake(name: str) -> str:
    """``LabelShiftAdapter`` -> ``label_shift_adapter``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def find(group: str, name: str) -> Any:
    """The object called ``name`` in ``group`` (``cl_bench.methods``, ...), imported now.

    ``name`` may also be ``package.module:Class`` or ``path/to/file.py:Class``.

    Raises:
        UserError: for an unknown name, with the nearest ones, or one that two distributions claim.
    """
    if ":" in name or name.endswith(".py"):
        return load_path(name)
    known = entries(group)
    if name in known:
        return known[name].load()
    kind = group.rpartition(".")[2]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"see `cl-bench list {kind}`."
    raise UserError(f"no {kind.rstrip('s')} is called {name!r}; {hint}")


def load_path(path: str) -> Any:
    """The object at ``package.module:Class`` or ``path/to/file.py:Class``.

    Raises:
        UserError: if the file, the module or the attribute is not there, or importing it fails; the cause is kept.
    """
    where, _, attribute = (path, "", "") if path.endswith(".py") else path.rpartition(":")
    if where.endswith(".py"):
        file = _file(where)
        if file is None:
            raise UserError(f"there is no file {where}; give path/to/file.py:Class.")
        module = _import_file(file)
    else:
        module = sys.modules.get(where)  # __main__ among them: a class that was typed into a notebook
        if module is None:
            with _told_where(where):  # looking for a module imports the packages that it lies in
                there = _is_module(where)
            if not there:
                raise UserError(f"there is no module {where!r}: install its package, put its folder on PYTHONPATH, or give "
                                "path/to/file.py:Class.")
            with _told_where(where):
                module = importlib.import_module(where)
    found: Any = module
    for step in attribute.split("."):
        if not hasattr(found, step):
            raise UserError(_lacking(where, module, attribute))
        found = getattr(found, step)
    if why := refused(found):
        raise UserError(why)
    return found


def _lacking(where: str, module: ModuleType, attribute: str) -> str:
    here = [n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__]
    if not attribute:
        return f"say which class of {where}: {where}:{here[0] if here else 'Class'}."
    near = difflib.get_close_matches(attribute, [n for n in vars(module) if not n.startswith("_")], n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else f" It has {', '.join(here) or 'no class of its own'}."
    return f"{where} has no {attribute!r}.{hint}"


def _file(where: str) -> Path | None:
    try:
        file = Path(where).expanduser().resolve()
        return file if file.is_file() else None
    except (OSError, ValueError, RuntimeError):  # too long for a name, a character that none can have, no such user
        return None


def _is_module(name: str) -> bool:
    if not all(step.isidentifier() for step in name.split(".")):
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


@contextmanager
def _told_where(name: str) -> Iterator[None]:
    """An error while ``name`` is imported as a sentence with file and line; the error itself is its cause."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as fault:
        raise UserError(f"{name} cannot be imported: {told(fault)}; mend it (--debug shows the traceback).") from fault


def _import_file(file: Path) -> Any:
    """A module from a file outside any package, under a stable name so that its classes keep their identity.

    The name holds the file's own and a hash of its path: two files of one name are two modules."""
    name = f"cl_bench_user_{re.sub(r'[^A-Za-z0-9_]', '_', file.stem)}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    known, source = sys.modules.get(name), file.read_bytes()
    if known is not None and getattr(known, "__file__", None) == str(file) and known.__dict__.get("__source__") == source:
        return known  # edited since, it is imported anew: what runs is what lies in the file
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"{file} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__source__"] = source
    sys.modules[name] = module
    try:
        with _told_where(str(file)), putting_off():
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def spawnable() -> None:
    """Let processes that begin anew (``spawn``) import users' files by the names that their modules have here.

    Such a process receives objects by the name of their class, and looks it up on this process's ``sys.path``: a folder there
    gets a module for each file that was imported.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("cl_bench_user_") and isinstance(source := module.__dict__.get("__source__"), bytes):
            text = (f"__file__ = {module.__file__!r}\nfrom cl_bench.errors import putting_off\nwith putting_off():\n"
                    f"    exec(compile({source!r}, __file__, 'exec'))\n")
            (Path(_shelf()) / f"{name}.py").write_text(text, encoding="utf-8")


@cache
def _shelf() -> str:
    folder = tempfile.mkdtemp(prefix="cl-bench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    sys.path.append(folder)
    return folder


def name_of(group: str, target: type) -> str:
    """The registered name of a class, or ``module:Class`` when it has none; one typed into a notebook is called as it is."""
    path = f"{target.__module__}:{target.__qualname__}"
    for entry in entries(group).values():
        if entry.target == path:
            return entry.name
    file = getattr(sys.modules.get(target.__module__), "__file__", None)
    if target.__module__.startswith("cl_bench_user_") and file:
        return f"{Path(file).name}:{target.__qualname__}"
    return target.__qualname__ if target.__module__ == "__main__" else path


@cache
def entries(group: str) -> dict[str, Entry]:
    """All names of a group, sorted; nothing is imported.

    Raises:
        UserError: if two distributions claim one name, or an entry points nowhere.
    """
    found: dict[str, Entry] = {}
    for point in entry_points(group=group):
        for entry in _expand(point):
            other = found.get(entry.name)
            if other is not None and other.target != entry.target:
                raise UserError(
                    f"{entry.name!r} in {group} is claimed by {other.distribution} and {entry.distribution}; "
                    "uninstall one or rename it."
                )
            found[entry.name] = entry
    return dict(sorted(found.items()))


def _expand(point: EntryPoint) -> Iterator[Entry]:
    distribution = point.dist.name if point.dist is not None else "?"
    if ":" in point.value:
        module, _, attribute = point.value.partition(":")
        file = _source_of(module, point, distribution)
        summary, facts = describe(file, attribute) if file else ("", {})
        yield Entry(point.name, point.value, distribution, summary, facts)
        return
    init = _source_of(point.value, point, distribution)
    if init is None:
        return
    for file in sorted(init.parent.rglob("*.py")):
        inside = file.relative_to(init.parent).with_suffix("").parts
        if any(part.startswith("_") for part in inside) or "test" in inside:
            continue
        module = ".".join([point.value, *inside])
        for name, summary, facts in _offers(file):
            if len(inside) > 1:  # methods/test_time/tent.py: its folder is its family unless it says otherwise
                facts.setdefault("family", inside[0].replace("_", "-"))
            yield Entry(name, f"{module}:{facts.pop('class')}", distribution, summary, facts)


def _source_of(module: str, point: EntryPoint, distribution: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        raise UserError(f"{distribution} registers {point.name} = {point.value}, but there is no module {module!r}.")
    return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None


def _parse(file: Path) -> ast.Module:
    stat = file.stat()
    return _parsed(file, stat.st_mtime_ns, stat.st_size)


@cache
def _parsed(file: Path, *_: int) -> ast.Module:
    """By time and size as well, so that a file that was edited is read again."""
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except SyntaxError as fault:
        raise UserError(f"{file} does not parse: {fault.msg} (line {fault.lineno}).") from fault


def _offers(file: Path) -> list[tuple[str, str, dict[str, Any]]]:
    """(name, summary, facts) of every class and function that the file's ``__all__`` lists."""
    tree = _parse(file)
    offered: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            offered = list(ast.literal_eval(node.value))
    rows = []
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name in offered:
            summary, facts = _facts(node)
            facts = {**_inherited(file, node), **facts}
            plain = file.stem.replace("_", "")
            name = facts.pop("name", None) or (file.stem if node.name.lower() == plain else snake(node.name))
            rows.append((name, summary, {**facts, "class": node.name}))
    return rows


def _inherited(file: Path, node: ast.ClassDef | ast.FunctionDef) -> dict[str, Any]:
    """What the bases of a class state, as far as this file and its siblings hold them (not its name)."""
    if isinstance(node, ast.FunctionDef):
        return {}
    tree, facts = _parse(file), {}
    homes = {
        alias.asname or alias.name: (file.parent / f"{part.module.replace('.', '/')}.py", alias.name)
        for part in tree.body if isinstance(part, ast.ImportFrom) and part.level == 1 and part.module
        for alias in part.names
    }
    for base in node.bases[::-1]:
        if not isinstance(base, ast.Name):
            continue
        where, wanted = homes.get(base.id, (file, base.id))
        for parent in _parse(where).body if where.is_file() else []:
            if isinstance(parent, ast.ClassDef) and parent.name == wanted and parent is not node:
                facts.update(_inherited(where, parent))
                facts.update(_facts(parent)[1])
    facts.pop("name", None)
    return facts


def describe(file: Path, attribute: str) -> tuple[str, dict[str, Any]]:
    """First docstring line and literal class attributes of ``attribute`` in ``file``, without importing it."""
    for node in _parse(file).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == attribute:
            return _facts(node)
    return "", {}


def _facts(node: ast.ClassDef | ast.FunctionDef) -> tuple[str, dict[str, Any]]:
    doc = ast.get_docstring(node) or ""
    facts: dict[str, Any] = {}
    for item in node.body if isinstance(node, ast.ClassDef) else []:
        target: ast.expr
        value: ast.expr | None
        if isinstance(item, ast.AnnAssign):
            target, value = item.target, item.value
        elif isinstance(item, ast.Assign):
            target, value = item.targets[0], item.value
        else:
            continue
        if isinstance(target, ast.Name) and value is not None:
            try:
                facts[target.id] = _literal(value)
            except ValueError:
                continue  # computed at run time: not a fact that the source states
    return " ".join(doc.split("\n\n")[0].split()), facts


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "frozenset":
        return sorted(ast.literal_eval(node.args[0])) if node.args else []
    return ast.literal_eval(node)

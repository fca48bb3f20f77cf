"""Which code made a number: digests of a class's source, and of cl_bench's own.

A digest covers text, not places: the same files in another folder, on another system or beside stale ``.pyc`` files give
the same. It covers the file of the class, those of its bases up to ``cl_bench``, and what these files import of their own
package, of the folder they lie in, or of anything else that was not installed; what was installed has a version, which the
record's environment holds. Imports are read from the source; one that is put together at run time is not seen.

A class that was typed into a notebook is digested with all that it names there. Where any of it has no source, the digest
is ``unknown``, which equals nothing, not even itself (:func:`same`).
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import linecache
import symtable
import sys
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

__all__ = ["UNKNOWN", "built_in", "class_paths", "code_digest", "code_of", "named_imports", "same", "source_digest"]

UNKNOWN = "unknown"
_CORE = ("cl_bench", "cl_bench_ops")  # what :func:`code_digest` covers
_PLUGINS = ("cl_bench_methods", "cl_bench_scenarios")
# Parts of cl_bench that show, keep and ask for numbers, and make none.
_SHOWS = {"cli.py", "command", "compare", "records", "registry.py", "testing"}
_SOURCES = {".py", ".cpp", ".cu", ".cuh", ".h"}


def same(a: str | None, b: str | None) -> bool:
    """Whether two digests are known and equal."""
    return a == b and a not in (None, "", UNKNOWN)


def built_in(target: Any) -> bool:
    """Whether a class or function came with cl-bench."""
    return _top(target.__module__) in (*_CORE, *_PLUGINS)


def class_paths(part: Any) -> list[str]:
    """Every class that a part of a config names, itself and, to any depth, what it wraps."""
    if isinstance(part, Mapping):
        named = [str(part["class_path"])] if "class_path" in part else []
        return named + [path for value in part.values() for path in class_paths(value)]
    return [path for value in part for path in class_paths(value)] if isinstance(part, (list, tuple)) else []


def source_digest(*targets: Any) -> str:
    """Digest of the source of classes (or functions that build them): 16 hex digits, or ``unknown``."""
    parts: list[str] = []
    for target in targets:
        found = _texts(target)
        if found is None:
            return UNKNOWN
        parts += [target.__qualname__, *sorted({hashlib.sha256(text.encode()).hexdigest() for text in found})]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@cache
def code_digest() -> str:
    """Digest of the code of cl_bench that makes numbers, as this process first saw it: 16 hex digits."""
    rows = []
    for name in _CORE:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            return UNKNOWN
        root = Path(spec.origin).parent
        for file in sorted(f for f in root.rglob("*") if f.suffix in _SOURCES and f.is_file()):
            inside = file.relative_to(root)
            if not (name == "cl_bench" and inside.parts[0] in _SHOWS):
                rows.append(f"{name}/{inside.as_posix()} {hashlib.sha256(_lines(file.read_bytes())).hexdigest()}")
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]


def code_of(targets: Iterable[Any]) -> str:
    """Digest of the code of classes and functions of any origin, and of cl_bench's own: of what was installed its file and its
    package's version, of the rest what :func:`source_digest` says; 16 hex digits, or ``unknown``."""
    parts = {code_digest()}
    for target in targets:
        module = str(getattr(target, "__module__", None) or "builtins")
        file, top = _file_of(sys.modules.get(module)), _top(module)
        if top in _CORE:
            continue
        if top in sys.builtin_module_names or top in sys.stdlib_module_names:
            parts.add(f"python {sys.version}")
        elif (file is None and not isinstance(target, (type, FunctionType))) or (file is not None and _installed(file)):
            version = getattr(sys.modules.get(top), "__version__", "")
            parts.add(f"{module} {version} {'' if file is None else _hash_of(file, *_version(file))}")
        else:
            parts.add(source_digest(target))
    return UNKNOWN if UNKNOWN in parts else hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()[:16]


@lru_cache(maxsize=1024)
def _hash_of(file: Path, *_: int) -> str:
    return hashlib.sha256(_lines(file.read_bytes())).hexdigest()


def _lines(data: bytes) -> bytes:
    return b"\n".join(data.splitlines())


def _top(module: str) -> str:
    return module.partition(".")[0]


def _own(target: Any) -> list[Any]:
    """The target and its bases, without cl_bench's and what those stand on, and without those of other packages that were
    installed: a data set stands on torch's, and the files of all that torch imports are thousands."""
    if not isinstance(target, type):
        return [target]
    given = {base for cls in target.__mro__ if _top(cls.__module__) in _CORE for base in cls.__mro__} | {object}
    return [target, *(cls for cls in target.__mro__[1:] if cls not in given and not _elsewhere(cls, target))]


def _elsewhere(base: type, target: type) -> bool:
    file = _file_of(sys.modules.get(base.__module__))
    return file is not None and _top(base.__module__) != _top(target.__module__) and _installed(file)


def _texts(target: Any) -> list[str] | None:
    """Every source text that a target's behaviour rests on; None where one cannot be read."""
    texts: list[str] = []
    files: dict[Path, None] = {}
    for part in _own(target):
        file = _file_of(sys.modules.get(part.__module__))
        if file is not None:
            if not _runs(part, file):
                return None
            files[file] = None
        elif (typed := _typed(part)) is not None:
            texts += typed[0]
            files.update(dict.fromkeys(typed[1]))
        else:
            return None
    tops = {_top(part.__module__) for part in _own(target)} - {"__main__"}
    todo = list(files)
    while todo:
        file = todo.pop()
        try:
            text, imports = _read(file, *_version(file))
        except (OSError, SyntaxError, UnicodeDecodeError):
            return None
        texts.append(text)
        for other in _imported(imports, file, tops):
            if other not in files:
                files[other] = None
                todo.append(other)
    return texts


def _version(file: Path) -> tuple[int, int]:
    """What changes when a file is edited."""
    stat = file.stat()
    return stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=1024)
def _read(file: Path, *_: int) -> tuple[str, tuple[ast.stmt, ...]]:
    """A version of a file: its text without what no code depends on, and its import statements."""
    with tokenize.open(file) as lines:  # its encoding, any line ends, no byte order mark
        text = lines.read()
    imports = tuple(node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Import, ast.ImportFrom)))
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip(), imports


@lru_cache(maxsize=1024)
def _codes(file: Path, *_: int) -> frozenset[CodeType]:
    """The functions and classes that a version of a file defines, at any depth."""
    todo, known = [compile(file.read_bytes(), str(file), "exec", dont_inherit=True)], set()
    while todo:
        inner = [c for c in todo.pop().co_consts if isinstance(c, CodeType)]
        known.update(inner)
        todo += inner
    return frozenset(known)


def _runs(part: Any, file: Path) -> bool:
    """Whether a class or function in memory is what its file says; it is not where the file was edited since."""
    inside = [part] if isinstance(part, FunctionType) else [getattr(v, "__func__", v) for v in vars(part).values()]
    codes = [f.__code__ for f in inside if isinstance(f, FunctionType) and Path(f.__code__.co_filename).resolve() == file]
    if not codes:
        return True
    try:
        return _codes(file, *_version(file)).issuperset(codes)
    except (OSError, SyntaxError, ValueError):
        return False


def _file_of(module: ModuleType | None) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file and file.endswith(".py") and Path(file).is_file() else None


# -- what a file imports ----------------------------------------------------------------------------------------------


def named_imports(file: Path) -> list[str]:
    """The modules that a file names in full where it imports, at its top or anywhere in it; none where it cannot be read."""
    try:
        _, imports = _read(file, *_version(file))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return []
    names = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
             [node.module] if isinstance(node, ast.ImportFrom) and not node.level and node.module else [] for node in imports)
    return [name for part in names for name in part]


def _imported(imports: Iterable[ast.stmt], file: Path, tops: Iterable[str]) -> Iterator[Path]:
    """Files of the modules that a file imports, anywhere in it, as far as they are its author's own."""
    for node in imports:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = file.parent
            for _ in range(node.level - 1):
                base = base.parent
            base = base.joinpath(*(node.module.split(".") if node.module else ()))
            yield from _modules(base, (alias.name for alias in node.names))
        elif isinstance(node, ast.ImportFrom):
            yield from _absolute(str(node.module), [alias.name for alias in node.names], file, tops)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield from _absolute(alias.name, [], file, tops)


def _modules(base: Path, names: Iterable[str]) -> Iterator[Path]:
    """``base`` as a module or package, and those of ``names`` that are modules in it."""
    for path in (base, *(base / name for name in names)):
        for file in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
            if file.is_file():
                yield file.resolve()


def _absolute(module: str, names: Iterable[str], file: Path, tops: Iterable[str]) -> Iterator[Path]:
    top, *rest = module.split(".")
    if top in _CORE or top in sys.stdlib_module_names:
        return
    root = _home(top, file)
    if root is None or (top not in tops and top not in _PLUGINS and _installed(root)):
        return
    yield from _modules(root, ())  # importing a part runs the packages that it lies in
    for k in range(len(rest)):
        yield from _modules(root.joinpath(*rest[:k + 1]), names if k == len(rest) - 1 else ())
    if not rest:
        yield from _modules(root, names)


def _home(top: str, file: Path) -> Path | None:
    """Where a top-level module lies, without ``.py``: as it was or would be imported, else beside ``file``."""
    found = getattr(sys.modules.get(top), "__file__", None)
    if found is None:
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            spec = None
        found = spec.origin if spec is not None and spec.has_location else None
        if found is None and spec is not None and spec.submodule_search_locations:  # a folder without __init__.py
            return Path(next(iter(spec.submodule_search_locations))).resolve()
    if found is not None:
        path = Path(found).resolve()
        return path.parent if path.name == "__init__.py" else path.with_suffix("")
    beside = file.parent / top
    return beside if beside.is_dir() or beside.with_suffix(".py").is_file() else None


def _installed(path: Path) -> bool:
    """Whether an installer put it there: the standard library's folders, and those that keep ``.dist-info``."""
    places = {Path(p).resolve() for key, p in sysconfig.get_paths().items() if key.endswith("lib")}
    return any(path.is_relative_to(p) for p in places) or any(_keeps_distributions(p) for p in path.parents)


@cache
def _keeps_distributions(folder: Path) -> bool:
    return folder.name in ("site-packages", "dist-packages") or next(folder.glob("*.dist-info"), None) is not None


# -- what was typed into a notebook -----------------------------------------------------------------------------------


def _typed(target: Any) -> tuple[list[str], list[Path]] | None:
    """Source of a class or function without a file, with all it names in its module; files of modules it names."""
    space = vars(sys.modules.get(target.__module__, ModuleType("none")))
    texts: list[str] = []
    files: list[Path] = []
    seen: set[int] = set()
    todo = [target]
    while todo:
        part = todo.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        text = _cell(part)
        if text is None:
            return None
        texts.append(text)
        for name in sorted(_names(text) & space.keys()):
            value = space[name]
            module = value if isinstance(value, ModuleType) else _importable(value)
            if module is not None:
                home = _file_of(module)
                if home is not None and _top(module.__name__) not in _CORE and not _installed(home):
                    files.append(home)
            elif isinstance(value, (type, FunctionType)):
                todo.append(value)
            elif (said := _said(value)) is not None:
                texts.append(f"{name} = {said}")
            else:
                return None
    return texts, files


def _importable(value: Any) -> ModuleType | None:
    """The module that a value can be imported from under its own name; none where it was made in the session."""
    module = sys.modules.get(str(getattr(value, "__module__", "")))
    name = getattr(value, "__name__", getattr(value, "_name", None))
    real = module is not None and getattr(module, "__spec__", None) is not None  # a session itself has none
    return module if real and isinstance(name, str) and getattr(module, name, None) is value else None


def _names(text: str) -> set[str]:
    """Names that a definition takes from its module: globals, not locals that happen to be called the same."""
    tables, names = [symtable.symtable(text, "cell", "exec")], set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        outermost = table.get_type() == "module"
        names |= {s.get_name() for s in table.get_symbols() if s.is_referenced() and (outermost or s.is_global())}
    return names


def _cell(part: Any) -> str | None:
    """The definition of a class or function, from the lines that the session keeps of its cells."""
    codes = [v.__code__ for v in ([part] if isinstance(part, FunctionType) else vars(part).values())
             if isinstance(getattr(v, "__code__", None), CodeType)]
    for code in codes:
        lines = linecache.getlines(code.co_filename)
        try:
            tree = ast.parse("".join(lines))
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == part.__name__:
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                if first <= code.co_firstlineno <= (node.end_lineno or first):
                    return inspect.cleandoc("\n" + "".join(lines[first - 1:node.end_lineno]))
    return None


def _said(value: Any) -> str | None:
    """A plain value as text; None for an object whose text would be an address."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    if isinstance(value, (list, tuple)) or (isinstance(value, Mapping) and type(value) is dict):
        parts = [_said(v) for v in (value if not isinstance(value, Mapping) else [x for kv in value.items() for x in kv])]
        return None if any(p is None for p in parts) else f"{type(value).__name__}({', '.join(map(str, parts))})"
    return None

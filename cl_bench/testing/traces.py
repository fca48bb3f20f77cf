"""What a method leaves where no copy, no reset and no checkpoint looks: in its classes, in modules, in hooks."""

from __future__ import annotations

import contextvars
import functools
import hashlib
import logging
import operator
import random
import sys
import types
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..method import Method
from ..state import HARNESS, leaves, parts
from .walk import own_classes, own_modules

__all__ = ["gained", "hidden", "names", "own_state", "plain_bytes", "removed", "told"]

_CACHED = type(functools.lru_cache(lambda: None))
_RUNNING = ("_trainer", "_fabric", *HARNESS)  # what the engine and Lightning hang on a method while it works

def own_state(cls: type) -> dict[str, str]:
    """The content of class attributes and module globals that the author of ``cls`` wrote, as digests by name."""
    out: dict[str, str] = {}
    for owner in own_classes(cls):
        out.update({f"{owner.__name__}.{k}": _digest(v) for k, v in list(vars(owner).items()) if _told(k)})
    for module in own_modules(cls):
        for key, value in list(vars(module).items()):
            if _told(key) and not isinstance(value, types.ModuleType):
                out[f"{module.__name__.rpartition('.')[2]}.{key}"] = _digest(value)
            if isinstance(value, type) and value.__module__ == module.__name__:
                out.update({f"{value.__name__}.{k}": _digest(v) for k, v in list(vars(value).items()) if _told(k)})
    return out


def _told(name: str) -> bool:
    return not (name.startswith("__") and name.endswith("__")) and name != "_abc_impl"


def _digest(value: Any) -> str:
    h = hashlib.sha256()
    for piece in _pieces(value, set(), []):
        h.update(piece)
    return h.hexdigest()


def _pieces(value: Any, seen: set[int], keep: list[Any]) -> Iterator[bytes]:
    """The content of a value, byte by byte; code is itself."""
    yield type(value).__name__.encode()
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        yield repr(value).encode()
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    keep.append(value)
    if isinstance(value, Tensor):
        if not value.is_meta:
            yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield value.tobytes()
    elif isinstance(value, Mapping):
        for k, v in list(value.items()):
            yield from _pieces(k, seen, keep)
            yield from _pieces(v, seen, keep)
    elif isinstance(value, (list, tuple, deque)):
        yield str(len(value)).encode()
        for v in value:
            yield from _pieces(v, seen, keep)
    elif isinstance(value, (set, frozenset)):
        yield from sorted(repr(v).encode() for v in value)
    elif isinstance(value, torch.Generator):
        yield value.get_state().numpy().tobytes()
    elif isinstance(value, random.Random):
        yield repr(value.getstate()).encode()
    elif isinstance(value, np.random.Generator):
        yield repr(value.bit_generator.state).encode()
    elif type(value).__module__ == "itertools":
        yield repr(value).encode()  # a counter says where it stands
    elif isinstance(value, types.GeneratorType):
        frame = value.gi_frame
        yield from _pieces(None if frame is None else [frame.f_lasti, dict(frame.f_locals)], seen, keep)
    elif isinstance(value, Iterator) and type(value).__module__ == "builtins":
        yield str(operator.length_hint(value)).encode()  # how much is left
    elif isinstance(value, contextvars.ContextVar):
        yield from _pieces(value.get(None), seen, keep)
    elif isinstance(value, _CACHED):
        yield repr(value.cache_info()).encode()
    elif isinstance(value, (staticmethod, classmethod, types.MethodType)):
        yield from _pieces(value.__func__, seen, keep)
    elif isinstance(value, property):
        yield from _pieces([value.fget, value.fset, value.fdel], seen, keep)
    elif isinstance(value, (types.FunctionType, type, types.ModuleType)):
        yield str(id(value)).encode()
        if isinstance(value, types.FunctionType):
            yield from _pieces((value.__defaults__, value.__kwdefaults__, value.__dict__), seen, keep)
            for cell in value.__closure__ or ():
                yield from _cell(cell, seen, keep)
    elif isinstance(value, nn.Module):
        yield from _pieces({k: v for k, v in vars(value).items() if "hook" not in k}, seen, keep)
    elif hasattr(value, "__dict__") and not isinstance(value, (logging.Logger, nn.Module)):
        yield from _pieces(vars(value), seen, keep)
    elif slots := [k for c in type(value).__mro__ for k in c.__dict__.get("__slots__", ()) if hasattr(value, k)]:
        yield from _pieces({k: getattr(value, k) for k in slots}, seen, keep)
    else:
        yield str(id(value)).encode()


def _cell(cell: Any, seen: set[int], keep: list[Any]) -> Iterator[bytes]:
    try:
        content = cell.cell_contents
    except ValueError:  # not yet filled
        return
    yield from _pieces(content, seen, keep)


# ---------------------------------------------------------------------------- where no walk over its state looks
def hidden(method: nn.Module) -> str:
    """A digest of what hangs on a method and is not its state: what hooks hold, and attributes that belong to Lightning."""
    h, seen, keep = hashlib.sha256(), set[int](), list[Any]()
    for part in method.modules():
        for key, hooks in vars(part).items():
            if "hook" in key and isinstance(hooks, Mapping):
                for piece in _pieces([key, list(hooks.values())], seen, keep):
                    h.update(piece)
    for key, value in vars(method).items():
        empty = value is None or (isinstance(value, Mapping) and not value)  # Lightning makes some when first asked for them
        if key in Method.WIRING and key not in _RUNNING and "hook" not in key and not empty:
            for piece in _pieces([key, value], seen, keep):
                h.update(piece)
    return h.hexdigest()


def plain_bytes(method: nn.Module) -> int:
    """Bytes of text and numbers that lie in a method's state beside its tensors: a number counts eight."""
    stack: list[Any] = [method]
    seen, keep, total = set[int](), list[Any](), 0
    while stack:
        here = stack.pop()
        if isinstance(here, (str, bytes, bytearray)):
            total += len(here)
        elif isinstance(here, (bool, int, float, complex)):
            total += 8
        elif id(here) not in seen:
            seen.add(id(here))
            keep.append(here)  # an id is unique only while its object lives
            stack.extend(parts(here, everything=True))
    return total


# ---------------------------------------------------------------------------- other modules
def names(cls: type) -> dict[Any, frozenset[str]]:
    """Which names there are in all modules but those of the author of ``cls``, in the harness's classes, and which modules
    hold tensors that no file made (compiled libraries make some, which hold none)."""
    mine = {m.__name__ for m in own_modules(cls)}
    out: dict[Any, frozenset[str]] = {}
    lazy = _Lazy()
    for name, module in sys.modules.copy().items():
        if isinstance(module, types.ModuleType) and name not in mine and not name.startswith("cl_bench.testing"):
            out[name] = frozenset([k for k, v in list(vars(module).items()) if not lazy[type(v)] and not _own(k)])
            if name.startswith("cl_bench"):
                out.update({(name, k): frozenset(vars(v)) for k, v in list(vars(module).items())
                            if isinstance(v, type) and v.__module__ == name})
    made = [(n, m) for n, m in sys.modules.copy().items() if getattr(m, "__spec__", None) is None and n not in mine]
    out[None] = frozenset(n for n, m in made if any(True for _ in leaves(dict(getattr(m, "__dict__", {})))))
    return out


class _Lazy(dict[type, bool]):
    """By its type, whether a value may appear by itself when something is imported or used for the first time. Asked of the
    type: a lazy object would look up what it stands for. There are 100,000 names, and some hundred types."""

    def __missing__(self, kind: type) -> bool:
        self[kind] = issubclass(kind, (types.ModuleType, type)) or hasattr(kind, "__call__")  # noqa: B004
        return self[kind]


def _own(name: str) -> bool:
    return name[:2] == "__" and name[-2:] == "__"


def gained(before: Mapping[Any, frozenset[str]], after: Mapping[Any, frozenset[str]]) -> list[tuple[Any, str]]:
    """(owner, name) of what is new: the owner a module's name, (module, class), or None for a module itself."""
    return [(owner, name) for owner, known in before.items() for name in sorted(after.get(owner, known) - known)]


def told(owner: Any, name: str) -> str:
    """A pair of :func:`gained` as a person writes it."""
    return ".".join([*([] if owner is None else [owner] if isinstance(owner, str) else owner), name])


def removed(owner: Any, name: str) -> None:
    """Take away what was gained."""
    if owner is None:
        sys.modules.pop(name, None)
    elif isinstance(owner, str):
        vars(sys.modules[owner]).pop(name, None)
    else:
        delattr(getattr(sys.modules[owner[0]], owner[1]), name)

"""What can be reached from an object, and which images lie in what is found: the eyes of the checker."""

from __future__ import annotations

import functools
import gc
import sys
import types
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Gallery", "held", "own_classes", "own_modules", "reached"]

_LEAVES = (str, bytes, bytearray, int, float, complex, bool, type(None), torch.dtype, torch.device, torch.Generator)
_CODE = (types.ModuleType, types.CodeType, types.FrameType, types.BuiltinFunctionType)
_LIBRARIES = ("torch", "pytorch_lightning", "lightning", "lightning_fabric", "cl_bench", "builtins", "abc", "typing", "numpy")
_MOST = 400_000  # objects of one walk


def own_classes(cls: type) -> list[type]:
    """The classes of a method that its author wrote: itself and its bases outside libraries and the contracts."""
    return [c for c in cls.__mro__ if c.__module__.partition(".")[0] not in _LIBRARIES]


def own_modules(cls: type) -> list[types.ModuleType]:
    """The modules that :func:`own_classes` live in."""
    names = dict.fromkeys(c.__module__ for c in own_classes(cls))
    return [sys.modules[n] for n in names if n in sys.modules]


# ---------------------------------------------------------------------------- by attributes
def reached(roots: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(path, object) for all that attributes lead to: public ones and those with an underscore, properties, items,
    arguments of partial functions, the tensor of which a tensor is a view. Methods are not called, ``__dunder__`` names
    and other modules are not followed: that is out of scope (docs/trust.md).
    """
    todo = deque(roots.items())
    seen: set[int] = set()
    keep: list[Any] = []  # an id is unique only while its object lives
    while todo and len(seen) < _MOST:
        path, value = todo.popleft()
        if isinstance(value, _LEAVES) or id(value) in seen:
            continue
        seen.add(id(value))
        keep.append(value)
        yield path, value
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            todo.extend(_parts(path, value))


def _parts(path: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, (type, *_CODE)):
        return
    if isinstance(value, Mapping):
        yield from ((f"{path}[{k!r}]", v) for k, v in list(value.items()))
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        yield from ((f"{path}[{k}]", v) for k, v in enumerate(list(value)))
    if isinstance(value, functools.partial):
        yield from ((f"{path}.func", value.func), (f"{path}.args", value.args), (f"{path}.keywords", value.keywords))
    if isinstance(value, Tensor):
        yield from ((f"{path}.{k}", getattr(value, k)) for k in ("_base", "grad") if getattr(value, k, None) is not None)
        return
    own = dict(getattr(value, "__dict__", {}))
    yield from ((f"{path}.{k}", v) for k, v in own.items() if not _dunder(k))
    if isinstance(value, (types.FunctionType, types.MethodType, nn.Module)):  # a layer's properties are its __dict__'s
        return
    for cls in type(value).__mro__[:-1]:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if not _dunder(name):
                yield from _asked(path, value, name)
        for name, entry in list(cls.__dict__.items()):
            if isinstance(entry, (property, functools.cached_property)) and not _dunder(name):
                yield from _asked(path, value, name)


def _asked(path: str, value: Any, name: str) -> Iterator[tuple[str, Any]]:
    try:
        found = getattr(value, name)
    except Exception:  # a property that refuses leads nowhere
        return
    yield f"{path}.{name}", found


def _dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


# ---------------------------------------------------------------------------- by references
def held(method: nn.Module, wiring: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """(where, object) for all that a method keeps alive: its attributes, its classes', its modules' globals, and what
    closures, containers and objects of any kind among these hold. ``wiring`` names attributes of the harness."""
    skip = set(wiring)
    todo: deque[tuple[str, Any]] = deque((f"self.{k}", v) for k, v in vars(method).items() if k not in skip)
    for cls in own_classes(type(method)):
        todo.extend((f"{cls.__name__}.{k}", v) for k, v in vars(cls).items() if not _dunder(k))
    for module in own_modules(type(method)):
        todo.extend((f"{module.__name__}.{k}", v) for k, v in vars(module).items() if not _dunder(k))
    seen = {id(method)}
    keep: list[Any] = []
    while todo and len(seen) < _MOST:
        path, value = todo.popleft()
        if isinstance(value, (type, *_LEAVES, *_CODE)) or id(value) in seen:
            continue
        seen.add(id(value))
        keep.append(value)
        yield path, value
        if isinstance(value, types.FunctionType):
            inside: list[Any] = [*(value.__closure__ or ()), *(value.__defaults__ or ()), *value.__dict__.values()]
        elif isinstance(value, nn.Module):
            todo.extend((f"{path}.{k}", v) for k, v in vars(value).items())
            continue
        elif isinstance(value, Mapping):
            todo.extend((f"{path}[{k!r}]", v) for k, v in list(value.items()))
            continue
        elif isinstance(value, (Tensor, np.ndarray)):
            continue
        else:
            inside = gc.get_referents(value)
        todo.extend((path, v) for v in inside)


# ---------------------------------------------------------------------------- images
class Gallery:
    """Images that can be recognised where they turn up: as bytes, floats or half floats, scaled, normalised or negative, one
    channel alone, flattened or stacked."""

    def __init__(self, x: Tensor) -> None:
        self.n, self.shape = len(x), tuple(x.shape[1:])
        flat = x.to(torch.float64).flatten(1)
        grey = x.to(torch.float64).mean(1).flatten(1)
        self.tables = {flat.shape[1]: _unit(flat), grey.shape[1]: _unit(grey)}

    def found(self, value: Any) -> set[int]:
        """Row numbers of the images that ``value``, a tensor or an array, contains."""
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            value = torch.from_numpy(np.ascontiguousarray(value))
        if not isinstance(value, Tensor) or value.is_meta or value.is_sparse or value.is_complex() or not value.numel():
            return set()
        rows: set[int] = set()
        for width, table in self.tables.items():
            folded = self._folded(value, width)
            if folded is None:
                continue
            for part in folded.split(512):
                best, which = (_unit(part.to("cpu", torch.float64)) @ table.T).abs().max(1)  # also a negative
                rows |= set(which[best > 0.999].tolist())
        return rows

    def _folded(self, value: Tensor, width: int) -> Tensor | None:
        """``value`` as rows of ``width`` numbers, where its last dimensions make whole images."""
        size, k = 1, value.ndim
        while k > 0 and size < width:
            k -= 1
            size *= value.shape[k]
        if size == width:
            return value.detach().reshape(-1, width)
        return value.detach().reshape(-1, width) if value.ndim == 1 and value.numel() % width == 0 else None


def _unit(rows: Tensor) -> Tensor:
    """Rows with mean 0 and norm 1; a constant row, and one with a number that is not finite, becomes 0."""
    centred = rows - rows.mean(1, keepdim=True)
    norm = centred.norm(dim=1, keepdim=True)
    return torch.where((norm > 1e-6) & norm.isfinite(), centred / norm, torch.zeros_like(centred)).nan_to_num(0.0)

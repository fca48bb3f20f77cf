"""What the state of a method is: everything in its attributes but wiring. One walk serves copies, files, sizes and moves.

Wiring is what a library or the harness hangs on a module for its own running: hooks, the Trainer, the mark of
:meth:`cl_bench.Method.mark`, the engine's way to take answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

__all__ = ["HARNESS", "leaves", "modules", "moved", "own", "parts", "size_bytes", "stored_images"]

HARNESS = ("_marked", "_answers", "_rows")
_HOOKS = frozenset(k for k in nn.Module().__dict__ if "hook" in k) | {"_compiled_call_impl"}
_FSDP = "_is_full"  # torch's bookkeeping of backward hooks
_MOST_OBJECTS = 1_000_000  # of one walk: a method that holds more is counted as far as that


def own(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module that are its state: parameters, buffers, layers, and whatever else it set.

    A module may name further attributes that are wiring in ``WIRING`` (:class:`cl_bench.Method` names Lightning's).
    """
    skip = _HOOKS | getattr(type(module), "WIRING", frozenset())
    return {k: v for k, v in module.__dict__.items() if k not in skip and not k.startswith(_FSDP)}


def parts(value: Any, *, everything: bool = False) -> Iterator[Any]:
    """What lies directly in ``value``: a module's state, a container's items, an optimizer's groups and buffers.

    ``everything`` also opens objects of unknown classes (a library's buffer, a user's own class).
    """
    if isinstance(value, nn.Module):
        yield from own(value).values()
    elif isinstance(value, torch.optim.Optimizer):
        yield from value.param_groups
        yield from value.state.values()
    elif isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        yield from value
    elif is_dataclass(value) and not isinstance(value, type):
        yield from (getattr(value, f.name) for f in fields(value))
    elif everything and not isinstance(value, (type, str, bytes, int, float, Tensor, np.ndarray)):
        yield from getattr(value, "__dict__", {}).values()
        yield from (getattr(value, name) for cls in type(value).__mro__ for name in _slots(cls) if hasattr(value, name))


def _slots(cls: type) -> tuple[str, ...]:
    names = cls.__dict__.get("__slots__", ())
    return (names,) if isinstance(names, str) else tuple(names)


def leaves(value: Any, *, everything: bool = False) -> Iterator[Any]:
    """Every tensor and array in ``value``, each object once; with ``everything`` also every data set, not opened."""
    stack: list[Any] = [value]
    seen: set[int] = set()
    keep: list[Any] = []
    while stack and len(seen) < _MOST_OBJECTS:
        here = stack.pop()
        if here is None or isinstance(here, (bool, int, float, str, bytes)) or id(here) in seen:
            continue
        seen.add(id(here))
        keep.append(here)  # an id is unique only while its object lives
        if isinstance(here, (Tensor, np.ndarray)) or (everything and isinstance(here, Dataset)):
            yield here
        else:
            stack.extend(parts(here, everything=everything))


def modules(value: Any) -> Iterator[nn.Module]:
    """Every module in ``value``, each once: also those that lie in plain containers, as in a mark."""
    stack: list[Any] = [value]
    seen: set[int] = set()
    while stack:
        here = stack.pop()
        if id(here) in seen or isinstance(here, (Tensor, np.ndarray)):
            continue
        seen.add(id(here))
        if isinstance(here, nn.Module):
            yield here
        stack.extend(parts(here))


def size_bytes(value: Any) -> int:
    """Bytes of all tensors and arrays in ``value``, each once."""
    return sum(t.nbytes if isinstance(t, np.ndarray) else t.numel() * t.element_size() for t in leaves(value))


def stored_images(value: Any, shape: tuple[int, ...]) -> int:
    """How many training items of one ``shape`` (C, H, W) lie in ``value``, in whatever it keeps them.

    Found are data sets of such items, and tensors and arrays whose last dimensions are the item's and that are no
    parameter; items of fewer than two dimensions cannot be told from other state and are not looked for. Memory that two
    tensors share counts once.
    """
    if len(shape) < 2:
        return 0
    each = int(np.prod(shape))
    spans: dict[Any, int] = {}
    for t in leaves(value, everything=True):
        if isinstance(t, Dataset):
            size = len(t)  # type: ignore[arg-type]
            if size and tuple(np.shape(t[0][0])) == tuple(shape):
                spans[id(t)] = size
            continue
        if isinstance(t, nn.Parameter) or tuple(t.shape[-len(shape):]) != tuple(shape) or t.ndim > len(shape) + 1:
            continue
        where = t.untyped_storage().data_ptr() if isinstance(t, Tensor) else t.__array_interface__["data"][0]
        at = (where, t.storage_offset() if isinstance(t, Tensor) else 0)
        count = (t.numel() if isinstance(t, Tensor) else t.size) // each
        spans[at] = max(spans.get(at, 0), count)
    return sum(spans.values())


def moved(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with ``fn`` applied to the plain tensors in it, as ``nn.Module.to`` does to parameters and buffers.

    Parameters and modules are left to torch; an optimizer keeps its parameters and its step counts.
    """
    if isinstance(value, torch.optim.Optimizer):
        for entry in value.state.values():
            entry.update({k: v if k == "step" else moved(v, fn) for k, v in entry.items()})
        return value
    if isinstance(value, Tensor):
        return value if isinstance(value, nn.Parameter) else fn(value)
    if isinstance(value, deque):
        return deque((moved(v, fn) for v in value), value.maxlen)
    if type(value) is dict:
        return {k: moved(v, fn) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(moved(v, fn) for v in value)
    return value

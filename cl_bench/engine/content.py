"""What identifies data and objects by what they are: no names, places or addresses."""

from __future__ import annotations

import copyreg
import hashlib
from collections.abc import Mapping
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data.tensor import TensorData
from ..records.source_digest import UNKNOWN, source_digest

__all__ = ["data_digest", "object_digest", "tensors_digest"]


def data_digest(data: Dataset) -> str:
    """sha256 over every image and label. What is not held in memory is read once, item by item."""
    if isinstance(data, TensorData):
        return TensorData.digest(data)  # of the pixels, whatever a subclass calls its digest
    h = hashlib.sha256()
    for k in range(len(data)):  # type: ignore[arg-type]
        x, y = data[k][:2]
        _add(h, torch.as_tensor(x))
        h.update(f"{int(y)};".encode())
    return h.hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes."""
    h = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        h.update(f"{name} ".encode())
        _add(h, value)
    return h.hexdigest()


def object_digest(value: Any) -> str | None:
    """sha256 over the source of a function or object and all that it holds; None where some of it cannot be told (a
    function without source, an open file)."""
    try:
        return hashlib.sha256(_told(value, {}).encode()).hexdigest()
    except (_Untold, TypeError, ValueError, RecursionError, AttributeError):
        return None


class _Untold(Exception):
    """Some part has no text of its own."""


def _add(h: Any, value: Tensor) -> None:
    h.update(f"{value.dtype} {tuple(value.shape)};".encode())
    h.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _told(value: Any, seen: dict[int, Any]) -> str:
    """A text that two values share only if they do the same."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, torch.dtype, torch.device)):
        return f"{type(value).__name__} {value!r}"
    if id(value) in seen:
        return f"again {list(seen).index(id(value))}"
    seen[id(value)] = value  # held, so that no other object gets its number

    def all_of(values: Any) -> str:
        return "[" + ", ".join(_told(v, seen) for v in values) + "]"

    if type(value) in (list, tuple, torch.Size):
        return all_of(value)
    if type(value) in (set, frozenset):
        return "[" + ", ".join(sorted(_told(v, seen) for v in value)) + "]"
    if type(value) is dict:
        return all_of(value.items())
    if isinstance(value, (Tensor, np.ndarray)):
        return tensors_digest({type(value).__name__: torch.as_tensor(value)})
    if isinstance(value, Enum):
        return f"{_code(type(value))}.{value.name}"
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return _code(value) + all_of([cells, value.__defaults__, value.__kwdefaults__])
    if isinstance(value, MethodType):
        return _told(value.__self__, seen) + "." + value.__name__
    if isinstance(value, (type, BuiltinFunctionType)):
        return _code(value)
    reduced = value.__reduce_ex__(2)  # what pickle would keep: all of its state
    if isinstance(reduced, str):
        raise _Untold(reduced)
    make, arguments, *state = reduced
    return ("new" if make is copyreg.__newobj__ else _told(make, seen)) + all_of([arguments, *(  # type: ignore[attr-defined]
        list(part) if part is not None and k in (1, 2) else part for k, part in enumerate(state))])


def _code(target: Any) -> str:
    """Name and source; of compiled code the name, whose meaning follows from its package's version."""
    name = f"{target.__module__}.{target.__qualname__}"
    if isinstance(target, BuiltinFunctionType) or target.__module__ in ("builtins", "torch", "_operator"):
        return name
    digest = source_digest(target)
    if digest == UNKNOWN:
        raise _Untold(name)
    return f"{target.__qualname__} {digest}"

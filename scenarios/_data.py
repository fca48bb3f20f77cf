"""Labelled images that are made when first looked at, and views of rows of them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from cl_bench import TensorData, TestSet, UserError
from cl_bench.data.digest import digest_of as digest_of
from cl_bench.data.labels import labels_of, whole_labels


def seed_of(*parts: Any) -> int:
    """A 32-bit seed that depends on every part and on nothing else (no hash randomisation, no process state)."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16)


def numbers(*parts: Any) -> np.random.RandomState:
    """The generator of a draw. NumPy's legacy generator: its streams are frozen (NEP 19), so index hashes last."""
    return np.random.RandomState(seed_of(*parts))


class Shelf:
    """Keeps the pixels of the last ``capacity`` data sets that were looked at, so that a long stream stays flat."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._kept: OrderedDict[int, Deferred] = OrderedDict()

    def touch(self, data: Deferred) -> None:
        """``data`` was made or used just now."""
        self._kept[id(data)] = data
        self._kept.move_to_end(id(data))
        while len(self._kept) > self.capacity:
            self._kept.popitem(last=False)[1].forget()


class Deferred(TensorData):
    """A :class:`TensorData` whose pixels are made when first looked at; its labels are known before.

    Args:
        make: gives ``x``, for images uint8 (N, 3, H, W), the same at every call.
        y: labels (N,).
        shelf: what limits how many of its data sets keep their pixels; None keeps them for good.
    """

    def __init__(self, make: Callable[[], Tensor], y: Tensor, shelf: Shelf | None = None) -> None:
        self._make: Callable[[], Tensor] | None = make
        self._shelf = shelf
        self._pixels: Tensor | None = None
        self.y = whole_labels(y, "images that are made when looked at")
        self._on: dict[str, TensorData] = {}

    @property
    def x(self) -> Tensor:  # type: ignore[override]
        """The images."""
        if self._pixels is None:
            assert self._make is not None
            made = self._make()
            if len(made) != len(self.y):
                raise UserError(f"{len(made)} images were made where there are {len(self.y)} labels; give one label per image.")
            self._pixels = made
        if self._shelf is not None:
            self._shelf.touch(self)
        return self._pixels

    def forget(self) -> None:
        """Drop the pixels; the next look makes them again."""
        self._pixels = self._bare = None
        self._on.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Into a worker process go the pixels: how they are made may be a function that cannot go."""
        return {"_make": None, "_shelf": None, "_pixels": self.x, "y": self.y, "_on": {}}

    def __deepcopy__(self, memo: dict[int, Any]) -> Deferred:
        """Nobody writes into a data set: a copy shares its pixels, and makes none."""
        twin = Deferred.__new__(Deferred)
        twin.__dict__.update(self.__dict__, _on={}, _bare=None)
        return twin


class Picked(Dataset):
    """Rows of any data set, read one by one when asked for."""

    says_labels: ClassVar[bool] = True

    def __init__(self, data: Dataset, y: Tensor, rows: Tensor) -> None:
        self.data, self.rows, self.y = data, rows, y[rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.data[int(self.rows[index])]

    def digest(self) -> str:
        """16 hex digits over what the whole is and which rows are taken."""
        return hashlib.sha256(digest_of(self.data).encode() + self.rows.numpy().tobytes()).hexdigest()[:16]


def pick(parts: Sequence[Dataset], rows: Any, shelf: Shelf | None = None) -> Dataset:
    """Rows (K,) of the concatenation of ``parts``; pixels are gathered when looked at."""
    at = torch.as_tensor(np.asarray(rows), dtype=torch.int64)
    y = torch.cat([labels_of(part) for part in parts])
    tensors = [part for part in parts if isinstance(part, TensorData)]
    if len(tensors) < len(parts):
        whole = parts[0] if len(parts) == 1 else ConcatDataset(parts)
        return Picked(whole, y, at)

    def gather() -> Tensor:
        out: Tensor | None = None
        start = 0
        for part in tensors:
            stop = start + len(part)
            here = (at >= start) & (at < stop)
            if bool(here.any()):
                found = part.x[at[here] - start].cpu()
                if out is None:
                    out = found.new_empty((len(at), *found.shape[1:]))
                if out.shape[1:] != found.shape[1:]:
                    raise UserError(
                        f"images of {tuple(out.shape[1:])} and {tuple(found.shape[1:])} cannot share a batch."
                    )
                out[here] = found
            start = stop
        return out if out is not None else tensors[0].x[:0].cpu()

    return Deferred(gather, y[at], shelf)


def view(test: TestSet, rows: Any, shelf: Shelf | None = None, name: str = "") -> TestSet:
    """``test`` with its rows re-ordered, dropped or repeated; per-row domains go along."""
    at = torch.as_tensor(np.asarray(rows), dtype=torch.int64)
    per_row = None if test.rows is None else (test.rows[0], np.asarray(test.rows[1])[at.numpy()])
    domain = test.domain or (test.name if name else "")
    return replace(test, name=name or test.name, domain=domain, data=pick([test.data], at, shelf), rows=per_row)

"""Labels, checked where data enter: whole numbers, one per image, 0 or more, and those that the items carry."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Sized
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from ..errors import UserError

__all__ = ["absent", "labels_of", "whole_labels"]

_LARGEST = 2**31 - 1  # predictions are recorded as 32-bit numbers
_PROBES = 32  # items whose labels are compared with what the data set says of itself


def whole_labels(values: Any, source: str, classes: int = 0) -> Tensor:
    """``values`` as int64 (N,), or a :class:`UserError` that names ``source``, the row and the value.

    Args:
        values: a tensor, an array or a sequence; whole numbers stored as floats pass.
        source: what the labels are of, for the message: a file in quotes, or a data set.
        classes: how many classes there are: labels are then below it; 0 = unknown.

    Raises:
        UserError: labels that are negative, NaN, fractional, too large, no numbers, or not one per image (one-hot).
    """
    array = _array(values, source)
    if array.ndim != 1:
        kind = "one row of scores per image (one-hot?)" if array.ndim == 2 else f"shape {array.shape}"
        raise UserError(f"The labels of {source} have {kind}: give one class number per image, (N,).")
    if array.dtype.kind == "f":
        _refuse(~np.isfinite(array), array, source, "is no number: use data that are labelled throughout")
        _refuse(array != np.floor(array), array, source, "is not a whole number: name the class numbers, not scores")
    elif array.dtype.kind not in "iub":
        raise UserError(f"The labels of {source} are {array.dtype.name}, not whole numbers: give class numbers 0, 1, ...")
    _refuse(array < 0, array, source, "is negative: leave out images without a label")
    _refuse(array > _LARGEST, array, source, "is too large for a class number: number the classes 0, 1, ...")
    if classes:
        last = f"where there are only classes 0 to {classes - 1}: is this the file of another data set?"
        _refuse(array >= classes, array, source, last)
    return torch.from_numpy(array.astype(np.int64))


def _array(values: Any, source: str) -> np.ndarray:
    if isinstance(values, Tensor):
        return values.detach().cpu().numpy()
    try:
        return np.asarray([v.item() if isinstance(v, Tensor) and v.ndim == 0 else v for v in values]
                          if isinstance(values, (list, tuple)) else values)
    except (ValueError, TypeError, RuntimeError) as fault:  # rows of several lengths
        raise UserError(f"The labels of {source} are not one number per image: give class numbers 0, 1, ...") from fault


def _refuse(bad: np.ndarray, array: np.ndarray, source: str, why: str) -> None:
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise UserError(f"Label {array[row]} (row {row} of {source}) {why}.")


def labels_of(data: Dataset) -> Tensor:
    """All labels (N,) of a data set, without decoding its images where it can say them.

    A data set says them by ``y`` or ``targets``. Of one that is not ours some items are asked as well, because a
    ``target_transform`` changes what items carry and not what ``targets`` says: then every item is asked, once.

    Raises:
        UserError: labels that are no class numbers (:func:`whole_labels`), or not as many as items.
    """
    if isinstance(data, Subset):
        return labels_of(data.dataset)[torch.as_tensor(np.asarray(data.indices, dtype=np.int64))]
    if isinstance(data, ConcatDataset):
        return torch.cat([labels_of(part) for part in data.datasets])
    said = getattr(data, "y", None)
    said = getattr(data, "targets", None) if said is None else said
    if said is None:
        return _asked(data)
    name = f"a {type(data).__name__}"
    y = whole_labels(said, name)
    n = len(data) if isinstance(data, Sized) else len(y)
    if n != len(y):
        raise UserError(f"{name} has {n} items and {len(y)} labels: give one label per item.")
    if getattr(data, "says_labels", False) or _agree(data, y):
        return y
    return _asked(data)


_asked_once: weakref.WeakKeyDictionary[Any, Tensor] = weakref.WeakKeyDictionary()
_agreeing: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def _agree(data: Dataset, y: Tensor) -> bool:
    """Whether items carry the labels that the data set says it has; some items are asked, once per data set."""
    if getattr(data, "target_transform", None) is not None:
        return False

    def compare() -> bool:
        rows = sorted({round(k * (len(y) - 1) / (_PROBES - 1)) for k in range(_PROBES)}) if len(y) else []
        try:
            return torch.equal(_items(data, rows), y[rows])
        except UserError:  # the row is named when all are asked
            return False

    return _once(_agreeing, data, compare)


def _asked(data: Dataset) -> Tensor:
    return _once(_asked_once, data, lambda: _items(data, range(len(data)))).clone()  # type: ignore[arg-type]


def _items(data: Dataset, rows: Any) -> Tensor:
    return whole_labels([data[row][1] for row in rows], f"a {type(data).__name__}")


def _once(kept: weakref.WeakKeyDictionary[Any, Any], data: Any, make: Callable[[], Any]) -> Any:
    try:
        if data not in kept:
            kept[data] = make()
        return kept[data]
    except TypeError:  # a list of pairs, or a class with its own equality: it cannot be remembered
        return make()


def absent(used: Collection[int], count: int, most: int = 6) -> list[int]:
    """The first ``most`` numbers below ``count`` that are not used. A label of nine digits among small ones costs nothing."""
    there = set(used)
    return list(islice((k for k in range(count) if k not in there), most))

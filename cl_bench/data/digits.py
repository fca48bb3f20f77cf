"""The 1,797 handwritten digits that scikit-learn ships: real input that needs no download.

Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI machine learning repository, 1998: 43 writers,
each digit counted on 8 x 8 cells of ink from 0 to 16. Bright ink on a dark ground.
"""

from __future__ import annotations

import gzip
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import UserError
from .tensor import TensorData

__all__ = ["DIGIT_NAMES", "digits"]

DIGIT_NAMES: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEST_SHARE = 5  # every fifth image of a class, after a fixed shuffle
_SPLIT_SEED = 1797


def digits(split: Literal["train", "test"] = "train") -> TensorData:
    """Handwritten digits as uint8 (N, 3, 32, 32); label = the digit.

    Fixed stratified split: within each class a fixed permutation, its first fifth (rounded) is the test set: 1,438
    training and 359 test images. scikit-learn's file does not say who wrote what, so writers occur in both. The 8 x 8
    counts are scaled to [0, 1], enlarged with PyTorch's bicubic filter (`align_corners=False`), clipped and rounded
    to uint8.
    """
    if split not in ("train", "test"):
        raise UserError(f'Unknown split "{split}" of digits: use "train" or "test".')
    whole, test = _load()
    return whole.subset(test if split == "test" else ~test)


def _table() -> np.ndarray:
    """scikit-learn's file (1797, 65): 64 counts and the digit. It is read without the package, whose import takes a second."""
    package = importlib.util.find_spec("sklearn")
    for place in (package.submodule_search_locations or ()) if package is not None else ():
        file = Path(place) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            with gzip.open(file, "rt") as rows:
                return np.loadtxt(rows, delimiter=",")
    from sklearn.datasets import load_digits  # it lies elsewhere in this version

    return np.column_stack(load_digits(return_X_y=True))


@lru_cache(maxsize=1)
def _load() -> tuple[TensorData, torch.Tensor]:
    table = _table()
    counts = torch.from_numpy(table[:, :-1].reshape(-1, 8, 8))[:, None] / 16.0
    # Double precision, so that rounding to uint8 does not depend on the order in which a machine adds.
    large = F.interpolate(counts, size=(32, 32), mode="bicubic", align_corners=False).clamp_(0.0, 1.0)
    x = large.mul_(255.0).round_().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    y = torch.from_numpy(table[:, -1].astype(np.int64))
    test = torch.zeros(len(y), dtype=torch.bool)
    shuffle = np.random.RandomState(_SPLIT_SEED)  # legacy generator: its stream is frozen by NumPy's policy (NEP 19)
    for digit in range(10):
        rows = np.flatnonzero(y.numpy() == digit)
        test[torch.from_numpy(shuffle.permutation(rows)[: round(len(rows) / _TEST_SHARE)])] = True
    return TensorData(x, y), test

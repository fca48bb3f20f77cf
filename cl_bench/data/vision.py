"""CIFAR-10, CIFAR-100, MNIST and their kin through torchvision's own classes, from files that the user has.

Krizhevsky, "Learning multiple layers of features from tiny images", 2009; LeCun, Cortes and Burges, "The MNIST
database", 1998.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..errors import UserError
from .folder import stay_inside
from .labels import whole_labels
from .parquet import LabelledImages
from .tensor import TensorData

__all__ = ["torchvision_data"]

# What torchvision looks for below the root, so that the message can say it.
_WANTED = {
    "CIFAR10": "cifar-10-batches-py/ (from cifar-10-python.tar.gz)",
    "CIFAR100": "cifar-100-python/ (from cifar-100-python.tar.gz)",
    "MNIST": "MNIST/raw/ with the four idx-ubyte files, unpacked",
    "FashionMNIST": "FashionMNIST/raw/ with the four idx-ubyte files, unpacked",
    "KMNIST": "KMNIST/raw/ with the four idx-ubyte files, unpacked",
}


def torchvision_data(
    name: Literal["CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST"],
    root: str | os.PathLike[str],
    split: Literal["train", "test"] = "train",
    *,
    download: bool = False,
) -> LabelledImages:
    """A data set of `torchvision.datasets` that fits in memory: uint8 (N, 3, H, W), int64 (N,), class names.

    Args:
        root: the folder that torchvision calls root.
        download: let torchvision fetch what is missing (needs a network).

    Raises:
        UserError: an unknown name or split, or files that are missing or damaged, with what to put where.
    """
    from torchvision import datasets

    if name not in _WANTED:
        raise UserError(f'Unknown data set "{name}": use one of {", ".join(_WANTED)}.')
    if split not in ("train", "test"):
        raise UserError(f'Unknown split "{split}" of {name}: use "train" or "test".')
    where = Path(root).expanduser()
    stay_inside(where / _WANTED[name].partition("/")[0], where)
    try:
        data: Any = getattr(datasets, name)(os.fspath(where), train=split == "train", download=download)
    except Exception as error:
        # RuntimeError for files that are missing or of another digest; what damaged ones raise (ValueError, KeyError,
        # AssertionError, pickle's own) is nowhere promised.
        raise UserError(
            f'{name} is not complete in "{where}" ({_first_line(error)}): '
            f"put {_WANTED[name]} there."
        ) from error
    pixels = torch.as_tensor(np.asarray(data.data))
    # Grey (N, H, W) becomes three equal channels; colour is kept as (N, H, W, 3).
    x = pixels[:, None].expand(-1, 3, -1, -1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    y = whole_labels(data.targets, f'{name} in "{where}"', 100 if name == "CIFAR100" else 10)
    return LabelledImages(TensorData(x.contiguous(), y), tuple(str(c) for c in data.classes))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]

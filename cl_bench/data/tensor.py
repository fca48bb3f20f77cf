"""Images as one uint8 tensor, and the loop over any data set in batches on the run's device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..types import Batch, Transform

__all__ = ["TensorData", "as_float", "batches", "concat", "labels_of"]


class TensorData(Dataset):
    """A data set held whole: ``x`` uint8 (N, 3, H, W), ``y`` int64 (N,).

    Raises:
        ValueError: if the shapes do not fit.
    """

    _bare: TensorData | None = None  # what `unlabelled` has made

    def __init__(self, x: Tensor, y: Tensor) -> None:
        if x.ndim != 4 or len(x) != len(y):
            raise ValueError(f"expected x (N, C, H, W) and y (N,), got {tuple(x.shape)} and {tuple(y.shape)}")
        self.x, self.y = x, y.to(torch.int64)
        self._on: dict[str, TensorData] = {}

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]

    def subset(self, indices: Any) -> TensorData:
        """The rows ``indices`` (ints or a bool mask), copied."""
        rows = torch.as_tensor(indices, device=self.x.device)
        return TensorData(self.x[rows], self.y[rows])

    def to(self, device: torch.device | str) -> TensorData:
        """Self on ``device``; moved once and kept, since a stream is read again and again."""
        if torch.device(device).type == self.x.device.type:
            return self
        key = str(device)
        if key not in self._on:
            self._on[key] = TensorData(self.x.to(device), self.y.to(device))
        return self._on[key]

    def unlabelled(self) -> TensorData:
        """The same images with row numbers for labels; made once and kept, so that a GPU's copy of it is kept too."""
        if self._bare is None:
            self._bare = TensorData(self.x, torch.arange(len(self.y), device=self.y.device))
        return self._bare

    def digest(self) -> str:
        """16 hex digits of the sha256 over shape, pixels and labels."""
        h = hashlib.sha256(repr(tuple(self.x.shape)).encode())
        h.update(self.x.cpu().contiguous().numpy().tobytes())
        h.update(self.y.cpu().contiguous().numpy().tobytes())
        return h.hexdigest()[:16]


def as_float(x: Tensor) -> Tensor:
    """uint8 images to float32 in [0, 1]; float images pass."""
    return x.to(torch.float32).div_(255.0) if x.dtype == torch.uint8 else x


def labels_of(data: Dataset) -> Tensor:
    """All labels (N,) of a data set without decoding its images where it can say them."""
    y = getattr(data, "y", None)
    if y is None:
        y = getattr(data, "targets", None)
    if y is None:
        y = [int(data[i][1]) for i in range(len(data))]  # type: ignore[arg-type]
    return torch.as_tensor(y).to(torch.int64).cpu()


def concat(parts: list[Dataset]) -> Dataset:
    """One data set from several; stays a :class:`TensorData` when all parts are."""
    tensors = [p for p in parts if isinstance(p, TensorData)]
    if len(tensors) == len(parts):
        return TensorData(torch.cat([p.x for p in tensors]), torch.cat([p.y for p in tensors]))
    return torch.utils.data.ConcatDataset(parts)


def batches(
    data: Dataset,
    size: int,
    *,
    shuffle: bool = False,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    augment: Transform | None = None,
    augment_generator: torch.Generator | None = None,
    drop_last: bool = False,
) -> Iterator[Batch]:
    """Batches of at most ``size`` images, float32 in [0, 1] on ``device``.

    A :class:`TensorData` is indexed where it lies, with no worker and no copy through the host. Other data sets are
    read item by item (wrap them in a DataLoader of your own for worker processes).
    """
    n = len(data)  # type: ignore[arg-type]
    order = torch.randperm(n, generator=generator) if shuffle else torch.arange(n)
    held = data.to(device) if isinstance(data, TensorData) else None
    for rows in order.split(size):
        if drop_last and len(rows) < size:
            return
        if held is not None:
            at = rows.to(held.x.device)
            x, y = held.x[at], held.y[at]
        else:
            items = [data[int(i)] for i in rows]
            x = torch.stack([torch.as_tensor(i[0]) for i in items]).to(device)
            y = torch.as_tensor([int(i[1]) for i in items], device=device)
        x = as_float(x)
        if augment is not None:
            if augment_generator is None:
                raise ValueError("augment needs its generator")
            x = augment(x, augment_generator)
        yield Batch(x, y)

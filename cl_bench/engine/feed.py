"""Batches from a data set to a Trainer: on the device where they fit, read item by item where not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.tensor import TensorData, as_float
from ..types import Batch, Transform
from .seeding import derive

__all__ = ["Feed"]


class _Images(Dataset[tuple[Any, int]]):
    """The images of a test set that is read item by item, each with its row number instead of its label."""

    def __init__(self, data: Dataset) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._data[index][0], index


class Feed:
    """Batches for a Trainer: an iterable with a length over data that lies on the device where it can.

    With ``labelled=False`` it yields images and row numbers, and holds no labels of data that are held in memory.
    """

    def __init__(self, data: Dataset, size: int, device: torch.device, *, workers: int = 0, seed: int | None = None,
                 augment: Transform | None = None, labelled: bool = True) -> None:
        if not labelled:
            data = data.unlabelled() if isinstance(data, TensorData) else _Images(data)
        self.data, self.size, self.device, self.workers = data, size, device, workers
        self.augment, self.labelled = augment, labelled
        self.order = None if seed is None else torch.Generator().manual_seed(derive(seed, "order"))
        self.noise = None if seed is None else torch.Generator(device).manual_seed(derive(seed, "augment"))
        self.held = data.to(device) if isinstance(data, TensorData) and _fits(data, device) else None

    def __len__(self) -> int:
        return math.ceil(len(self.data) / self.size)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        n = len(self.data)  # type: ignore[arg-type]
        order = torch.arange(n) if self.order is None else torch.randperm(n, generator=self.order)
        for rows, x, y in self._read(order):
            x = as_float(x)
            if not self.labelled:
                yield x, rows
            else:
                yield Batch(x if self.augment is None else self.augment(x, self.noise), y)  # type: ignore[arg-type]

    def _read(self, order: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        if self.held is not None:
            for rows in order.to(self.device).split(self.size):
                yield rows, *self.held.take(rows)
            return
        chunks = [c.tolist() for c in order.split(self.size)]
        pin = self.device.type == "cuda"
        for rows, (x, y) in zip(order.split(self.size), DataLoader(  # type: ignore[call-arg]
                self.data, batch_sampler=chunks, num_workers=self.workers, pin_memory=pin), strict=True):
            yield rows.to(self.device), x.to(self.device, non_blocking=pin), y.to(self.device, non_blocking=pin)


def _fits(data: TensorData, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return data.nbytes < free // 4

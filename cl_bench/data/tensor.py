"""Data held as tensors, what a method is handed of any data, and the loop over it in batches on the run's device."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import UserError
from ..types import Batch, Transform
from .labels import labels_of, whole_labels

__all__ = ["TensorData", "as_float", "batch_sizes", "batches", "concat", "images_for_method", "labels_of",
           "sent", "view_for_method"]


class TensorData(Dataset):
    """A data set held whole: ``x`` (N, ...), for images uint8 (N, 3, H, W), and ``y`` int64 (N,).

    Any dtype and shape of ``x`` goes (rows of a table, tokens); only uint8 of three or more dimensions per batch means
    images, which methods get as float in [0, 1].

    Raises:
        UserError: if there is not one label per row, or labels are no class numbers.
    """

    says_labels: ClassVar[bool] = True  # `y` is what items carry
    _bare: TensorData | None = None  # what `unlabelled` has made

    def __init__(self, x: Tensor, y: Tensor) -> None:
        if x.ndim < 1 or len(x) != len(y):
            raise UserError(f"A TensorData needs one label per row: x is {tuple(x.shape)} and y {tuple(y.shape)}.")
        self.x, self.y = x, whole_labels(y, "a TensorData").to(y.device)
        self._on: dict[str, TensorData] = {}

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]

    @property
    def nbytes(self) -> int:
        """Bytes of ``x``."""
        return self.x.numel() * self.x.element_size()

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` and ``y`` at ``rows`` (row numbers or a bool mask), copied, where the data lie."""
        return self.x[rows.to(self.x.device)], self.y[rows.to(self.y.device)]

    def subset(self, indices: Any) -> TensorData:
        """The rows ``indices`` (ints or a bool mask), copied."""
        return TensorData(*self.take(torch.as_tensor(indices)))

    def to(self, device: torch.device | str) -> TensorData:
        """Self on ``device``; moved once and kept, since a stream is read again and again."""
        if torch.device(device).type == self.x.device.type:
            return self
        key = str(device)
        if key not in self._on:
            self._on[key] = TensorData(self.x.to(device), self.y.to(device))
        return self._on[key]

    def unlabelled(self) -> TensorData:
        """The same images with row numbers for labels, to be read only; made once and kept, with a GPU's copy of it."""
        if self._bare is None:
            self._bare = HandedData(self, labelled=False)
        return self._bare

    def digest(self) -> str:
        """16 hex digits of the sha256 over shape, pixels and labels."""
        h = hashlib.sha256(repr(tuple(self.x.shape)).encode())
        h.update(self.x.cpu().contiguous().numpy().tobytes())
        h.update(self.y.cpu().contiguous().numpy().tobytes())
        return h.hexdigest()[:16]


class HandedData(TensorData):
    """A :class:`TensorData` as a method is handed it: every row that it gives is a copy, and no attribute leads to what
    the scenario holds.

    ``x`` and ``y`` are copies of the whole, made when first asked for; batches and items are gathered one by one from
    the original, so that what a method writes reaches neither the scenario nor the next batch.
    """

    __slots__ = ("__device", "__length", "__moved", "__own", "__read", "__size")

    def __init__(self, data: TensorData, labelled: bool = True) -> None:
        def read(name: str, rows: Any = None) -> Tensor:  # a closure: nothing below holds `data`
            if name == "y" and not labelled:
                return torch.arange(len(data), device=data.x.device) if rows is None else _numbers(rows, len(data))
            whole = data.x if name == "x" else data.y
            return whole.clone() if rows is None else whole[rows].clone() if isinstance(rows, int) else whole[rows]

        self.__length, self.__read = len(data), read
        self.__own: dict[str, Tensor] = {}
        self.__moved: Callable[[Any], TensorData] = lambda device: HandedData(data.to(device), labelled)
        self.__device: Callable[[], torch.device] = lambda: data.x.device
        self.__size: Callable[[], int] = lambda: data.nbytes
        self._on = {}

    def __len__(self) -> int:
        return self.__length

    @property
    def x(self) -> Tensor:  # type: ignore[override]
        """All images, copied once."""
        return self.__whole("x")

    @property
    def y(self) -> Tensor:  # type: ignore[override]
        """All labels, copied once."""
        return self.__whole("y")

    @property
    def nbytes(self) -> int:
        """Bytes of ``x``."""
        return self.__size()

    def __whole(self, name: str) -> Tensor:
        if name not in self.__own:
            self.__own[name] = self.__read(name)
        return self.__own[name]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__read("x", int(index)), self.__read("y", int(index))

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.to(self.__device())
        return self.__read("x", rows), self.__read("y", rows)

    def to(self, device: torch.device | str) -> TensorData:
        if torch.device(device).type == self.__device().type:
            return self
        key = str(device)
        if key not in self._on:
            self._on[key] = self.__moved(device)
        return self._on[key]

    def __deepcopy__(self, memo: dict[int, Any]) -> HandedData:
        twin = copy.copy(self)
        memo[id(self)] = twin
        return twin

    def __copy__(self) -> HandedData:
        twin = HandedData.__new__(HandedData)
        twin.__length, twin.__read, twin.__moved = self.__length, self.__read, self.__moved
        twin.__device, twin.__size = self.__device, self.__size
        twin.__own, twin._on = {name: own.clone() for name, own in self.__own.items() if name in ("x", "y")}, {}
        return twin

    def __reduce__(self) -> Any:
        """Into another process goes a copy of the rows; closures would not go at all. It is kept, because the process
        that is being started finds tensors by file descriptors, which end with them."""
        for name in ("x", "y"):
            if f"sent {name}" not in self.__own:
                self.__own[f"sent {name}"] = self.__read(name)
        return _handed, (self.__own["sent x"], self.__own["sent y"])


def _handed(x: Tensor, y: Tensor) -> HandedData:
    return HandedData(TensorData(x, y))


def _numbers(rows: Any, n: int) -> Tensor:
    if isinstance(rows, int):
        return torch.tensor(range(n)[rows])
    return torch.nonzero(rows).flatten() if rows.dtype == torch.bool else rows.clone()


class HandedItems(Dataset):
    """Data that are read item by item as a method is handed them: pairs that are copies, and no attribute that leads
    to the data set they come from."""

    __slots__ = ("__data", "__length", "__own", "__read")
    says_labels: ClassVar[bool] = True

    def __init__(self, data: Dataset, labelled: bool = True) -> None:
        def read(row: int) -> tuple[Any, Any]:
            x, y = data[row][:2]
            x = x.clone() if isinstance(x, Tensor) else copy.deepcopy(x)
            return x, (y.clone() if isinstance(y, Tensor) else y) if labelled else range(self.__length)[row]

        self.__length, self.__read = len(data), read  # type: ignore[arg-type]
        self.__own: Tensor | None = None if labelled else torch.arange(self.__length)
        self.__data = lambda: (data, labelled)

    def __len__(self) -> int:
        return self.__length

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.__read(int(index))

    @property
    def y(self) -> Tensor:
        """All labels, copied once."""
        if self.__own is None:
            self.__own = labels_of(self.__data()[0]).clone()
        return self.__own

    def __deepcopy__(self, memo: dict[int, Any]) -> HandedItems:
        return HandedItems(*self.__data())

    def __reduce__(self) -> Any:
        return HandedItems, self.__data()


def view_for_method(data: Dataset) -> Dataset:
    """``data`` as a method may hold it: length, items, batches, ``y`` and (where it is held whole) ``x``, all of them
    copies; nothing leads further, and nothing written reaches the scenario."""
    if isinstance(data, (HandedData, HandedItems)):
        return data
    return HandedData(data) if isinstance(data, TensorData) else HandedItems(data)


def images_for_method(data: Dataset) -> Dataset:
    """As :func:`view_for_method`, with row numbers in place of labels: test data."""
    return HandedData(data, labelled=False) if isinstance(data, TensorData) else HandedItems(data, labelled=False)


def as_float(x: Tensor) -> Tensor:
    """uint8 images, (C, H, W) or a batch of them, to float32 in [0, 1]; everything else passes untouched."""
    return x.to(torch.float32).div_(255.0) if x.dtype == torch.uint8 and x.ndim >= 3 else x


def sent(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on ``device``, without waiting for a GPU: what every step draws on the host, such as row numbers.

    A plain copy to a GPU waits for all that it was asked before, and the next step is handed over late.
    """
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def concat(parts: list[Dataset]) -> Dataset:
    """One data set from several; stays a :class:`TensorData` when all parts are."""
    tensors = [p for p in parts if isinstance(p, TensorData)]
    if len(tensors) == len(parts):
        return TensorData(torch.cat([p.x for p in tensors]), torch.cat([p.y for p in tensors]))
    return torch.utils.data.ConcatDataset(parts)


def batch_sizes(n: int, size: int, least: int = 1) -> list[int]:
    """Sizes of the batches of ``n`` images: ``size`` each, and what is left.

    With ``least`` 2, a last batch of a single image is joined to the one before it: BatchNorm in training has no
    statistics of one value per channel.

    Raises:
        UserError: where even all images together are fewer than ``least``.
    """
    if size < 1:
        raise UserError(f"batch_size must be 1 or more, not {size}.")
    sizes = [size] * (n // size) + ([n % size] if n % size else [])
    if sizes and sizes[-1] < least:
        if len(sizes) == 1:
            raise UserError(f"{n} image(s) are too few to train on, where a batch needs {least}: give more images.")
        sizes[-2:] = [sizes[-2] + sizes[-1]]
    return sizes


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
    """Batches of at most ``size`` images, float32 in [0, 1] on ``device``; other data as they are.

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
            x, y = held.take(rows)
        else:
            items = [data[int(i)] for i in rows]
            x = torch.stack([torch.as_tensor(i[0]) for i in items]).to(device)
            y = whole_labels([i[1] for i in items], f"a {type(data).__name__}").to(device)
        x = as_float(x)
        if augment is not None:
            if augment_generator is None:
                raise ValueError("augment needs its generator")
            x = augment(x, augment_generator)
        yield Batch(x, y)

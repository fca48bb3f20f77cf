"""Batches from data sets to a Trainer: on the device where they fit, read item by item where not.

What a Trainer holds is opaque: an iterable with a length and nothing else, so that no attribute of it leads a method to
labels, row numbers, other data or the engine.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.tensor import TensorData, as_float, batch_sizes
from ..errors import UserError
from ..types import Batch, Transform
from .seeding import derive

__all__ = ["FeedPosition", "Pool", "TrainingFeed", "opaque"]


def opaque(iterate: Callable[[], Iterator[Any]], length: int) -> Any:
    """An iterable with a length whose source no attribute leads to."""

    class Opaque:
        __slots__ = ()

        def __iter__(self) -> Iterator[Any]:
            return iterate()

        def __len__(self) -> int:
            return length

    return Opaque()


class _Images(Dataset[tuple[Any, int]]):
    """The images of test sets that are read item by item, without their labels."""

    def __init__(self, data: Sequence[Dataset]) -> None:
        self._data = data
        self._starts = _starts(data)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Any:
        k = bisect_right(self._starts, index) - 1
        return torch.as_tensor(self._data[k][index - self._starts[k]][0])


def _starts(data: Sequence[Dataset]) -> list[int]:
    starts = [0]
    for part in data:
        starts.append(starts[-1] + len(part))  # type: ignore[arg-type]
    return starts


class Pool:
    """Images of one or several data sets by global row number, in batches of a given order; labels are not read.

    Args:
        data: data sets whose items are alike; rows count through them in this order.
        size: images per batch.
        draws: what a loader of data that are read item by item draws its own seed from; None = the process's generator.
    """

    def __init__(self, data: Sequence[Dataset], size: int, device: torch.device, *, workers: int = 0,
                 draws: torch.Generator | None = None) -> None:
        self.data, self.size, self.device, self.workers, self.draws = list(data), size, device, workers, draws
        self.starts = _starts(self.data)
        self._ends = torch.tensor(self.starts[1:])
        held = [d for d in self.data if isinstance(d, TensorData)]
        self.held = [d.to(device).x for d in held] if len(held) == len(self.data) and _fit(held, device) else None

    def __len__(self) -> int:
        return self.starts[-1]

    def batches(self, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(rows, images float in [0, 1] where they are bytes) for the rows of ``order`` (n,), on the device."""
        if not len(order):
            return
        if self.held is not None:
            located = self._located(order)
            for rows in (order.to(self.device) if len(self.held) == 1 else order).split(self.size):
                yield rows, as_float(self.held[0][rows] if len(self.held) == 1 else self._gather(len(rows), next(located)))
            return
        pin, chunks = self.device.type == "cuda", order.split(self.size)
        loader = DataLoader(_Images(self.data), batch_sampler=[c.tolist() for c in chunks],  # type: ignore[call-arg]
                            num_workers=self.workers, pin_memory=pin, generator=self.draws)
        for rows, x in zip(chunks, loader, strict=True):
            yield rows, as_float(x.to(self.device, non_blocking=pin))

    def _located(self, order: Tensor) -> Iterator[list[tuple[int, Tensor, Tensor]]]:
        """For each batch of ``order``, the data sets that it is of (those alone: a row of the matrix stays linear in the number
        of test sets): which, their places in the batch, and their rows. Found on the host and copied to the device together:
        a mask there, or a copy for each batch, would wait for all that was asked of it before."""
        if len(self.data) == 1:
            return
        of = torch.bucketize(order, self._ends, right=True)
        row = order - torch.tensor(self.starts)[of]
        sets, places, numbers = [], [], []
        for which, rows in zip(of.split(self.size), row.split(self.size), strict=True):
            sets.append(which.unique().tolist())
            here = [(which == k).nonzero().flatten() for k in sets[-1]]
            places += here
            numbers += [rows[at] for at in here]
        counts = [len(at) for at in places]
        moved = (iter(torch.cat(parts).to(self.device).split(counts)) for parts in (places, numbers))
        at_next, rows_next = moved
        for batch in sets:
            yield [(k, next(at_next), next(rows_next)) for k in batch]

    def _gather(self, count: int, located: list[tuple[int, Tensor, Tensor]]) -> Tensor:
        held = self.held
        assert held is not None
        first, _, rows = located[0]
        if len(located) == 1:
            return held[first][rows]
        out = held[first].new_empty(count, *held[first].shape[1:])
        for k, at, rows in located:
            out[at] = held[k][rows]
        return out


def _fit(held: Sequence[TensorData], device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return sum(d.nbytes for d in held) < free // 4


@dataclass
class FeedPosition:
    """Where a training feed stands between two batches: enough to hand out the same batches from here on.

    Attributes:
        batch: how many batches of this epoch were handed out.
        order, noise: states of the generators of the epoch's order (as the epoch began) and of augmentation (now).
    """

    batch: int
    order: Tensor
    noise: Tensor


class TrainingFeed:
    """Batches of an experience, in an order drawn anew every epoch from the seed.

    Args:
        joins: whether a last batch of one item joins the one before it (a batch of one has no batch statistics).
        at: where to go on within the first epoch handed out.
        between: called before each batch but the first of an epoch, with no batch under way.
        resumed: called before the first batch handed out from ``at``, once all that starting draws was drawn.
        part: this process's number and how many there are; each gets its share of every batch (:func:`..ranks.share`). What
            augmentation draws is drawn for the whole batch where the data are held in memory.
        told: called with the rows of each batch, this process's and all.

    Raises:
        UserError: for a single image where ``joins``, and for a batch that cannot be shared.
    """

    def __init__(self, data: Dataset, size: int, device: torch.device, *, seed: int, workers: int = 0,
                 augment: Transform | None = None, joins: bool = False, at: FeedPosition | None = None,
                 between: Callable[[], None] | None = None, resumed: Callable[[], None] | None = None,
                 part: tuple[int, int] = (0, 1), told: Callable[[int, int], None] | None = None) -> None:
        self.part, self.told = part, told
        self.data, self.device, self.workers, self.augment = data, device, workers, augment
        self.generators = {"order": torch.Generator().manual_seed(derive(seed, "order")),
                           "noise": torch.Generator(device).manual_seed(derive(seed, "augment"))}
        self.sizes = batch_sizes(len(data), size, 2 if joins else 1)  # type: ignore[arg-type]
        if (least := min(self.sizes, default=part[1])) < part[1]:
            raise UserError(f"a batch of {least} images cannot be shared among {part[1]} processes; choose another batch_size.")
        self.held = data.to(device) if isinstance(data, TensorData) and _fit([data], device) else None
        self.at, self.between, self.resumed = at, between, resumed
        self.batch, self.epoch_order = 0, self.generators["order"].get_state()

    def __len__(self) -> int:
        return len(self.sizes)

    def position(self) -> FeedPosition:
        """Where the feed stands now; to be asked from ``between``."""
        return FeedPosition(self.batch, self.epoch_order, self.generators["noise"].get_state())

    def __iter__(self) -> Iterator[Batch]:
        at, self.at = self.at, None
        if at is not None:
            self.generators["order"].set_state(at.order.cpu())
            self.generators["noise"].set_state(at.noise.cpu())
        self.batch = first = 0 if at is None else at.batch
        self.epoch_order = self.generators["order"].get_state()
        order = torch.randperm(sum(self.sizes), generator=self.generators["order"])
        if self.held is not None:
            order = order.to(self.device)  # once: a batch's own rows, copied to a GPU, would wait for all steps before it
        read = self._read(list(order.split(self.sizes))[first:])
        for k in range(first, len(self.sizes)):
            self.batch = k
            if k > first and self.between is not None:
                self.between()
            x, y = next(read)
            if at is not None and k == first and self.resumed is not None:
                self.resumed()
            x = as_float(x)
            x = x if self.augment is None else self.augment(x, self.generators["noise"])
            if self.part[1] > 1 and self.held is not None:
                x, y = (rows[self.part[0]::self.part[1]].contiguous() for rows in (x, y))
            if self.told is not None:
                self.told(len(y), self.sizes[k])
            yield Batch(x, y)

    def _read(self, chunks: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        if self.held is not None:
            for rows in chunks:
                yield self.held.take(rows)
            return
        pin = self.device.type == "cuda"
        mine = [c[self.part[0]::self.part[1]].tolist() for c in chunks]
        for x, y in DataLoader(self.data, batch_sampler=mine,  # type: ignore[call-arg]
                               num_workers=self.workers, pin_memory=pin):
            yield x.to(self.device, non_blocking=pin), y.to(self.device, non_blocking=pin)

"""CSTU, RoTTA's memory of test images: balanced over predicted classes, scored by age and uncertainty."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..data.tensor import sent

__all__ = ["CategoryBalancedMemory"]


class CategoryBalancedMemory(nn.Module):
    """At most ``size`` test images with pseudo-label, entropy and age (Yuan et al., CVPR 2023; BIT-DA/RoTTA).

    A class's quota is size / classes, as a float. An item's score is ``time / (1 + exp(-age / size)) + uncertainty *
    H / ln C``; the item with the largest score makes room for a new one whose score is smaller. Then all items age by
    one, whether or not the new one was taken.

    The book-keeping is plain numbers; images stay on their device, and rows that entered are copied when
    :meth:`commit` is called, so a batch costs one transfer of labels and entropies.

    Args:
        size: capacity.
        classes: number of classes.
        time, uncertainty: lambda_t and lambda_u.
    """

    x: Tensor

    def __init__(self, size: int, classes: int, time: float = 1.0, uncertainty: float = 1.0) -> None:
        super().__init__()
        self.size, self.classes, self.time, self.uncertainty = size, classes, time, uncertainty
        self.register_buffer("x", torch.zeros(0))
        self.items: list[list[float]] = []  # slot -> [label, entropy, age]
        self.pending: dict[int, int] = {}  # slot -> row of the batch at hand

    def __len__(self) -> int:
        return len(self.items)

    def add(self, row: int, label: int, entropy: float) -> bool:
        """Offer row ``row`` of the batch at hand; returns whether it was taken."""
        slot = self._slot(label, self._score(entropy, 0.0))
        if slot is not None:
            entry = [float(label), entropy, 0.0]
            if slot == len(self.items):
                self.items.append(entry)
            else:
                self.items[slot] = entry
            self.pending[slot] = row
        for item in self.items:
            item[2] += 1
        return slot is not None

    def commit(self, batch: Tensor) -> None:
        """Copy the rows of ``batch`` that entered since the last commit."""
        if not self.pending:
            return
        if len(self.x) == 0:
            self.x = torch.zeros(self.size, *batch.shape[1:], dtype=batch.dtype, device=batch.device)
        slots = sent(torch.tensor(list(self.pending)), batch.device)
        rows = sent(torch.tensor(list(self.pending.values())), batch.device)
        self.x[slots] = batch[rows].detach()
        self.pending = {}

    def images(self) -> Tensor:
        """The stored images (n, 3, H, W), in the order of :meth:`ages`."""
        return self.x[: len(self.items)]

    def ages(self) -> Tensor:
        """Ages divided by the capacity, (n,), on the images' device."""
        return sent(torch.tensor([item[2] / self.size for item in self.items], dtype=self.x.dtype), self.x.device)

    def _score(self, entropy: float, age: float) -> float:
        unsure = entropy / math.log(self.classes) if self.classes > 1 else 0.0
        return self.time / (1 + math.exp(-age / self.size)) + self.uncertainty * unsure

    def _slot(self, label: int, score: float) -> int | None:
        """Where a new item goes: a free slot, the slot it evicts, or None if it is dropped."""
        count: dict[float, int] = {}
        for item in self.items:
            count[item[0]] = count.get(item[0], 0) + 1
        if count.get(label, 0) < self.size / self.classes:
            if len(self.items) < self.size:
                return len(self.items)
            most = max(count.values())
            crowded = {c for c, n in count.items() if n == most}
        else:
            crowded = {float(label)}
        worst, worst_score = None, -math.inf
        for slot, (owner, entropy, age) in enumerate(self.items):
            if owner in crowded and (held := self._score(entropy, age)) >= worst_score:
                worst, worst_score = slot, held
        if worst is None:
            return len(self.items) if len(self.items) < self.size else None
        return worst if worst_score > score else None

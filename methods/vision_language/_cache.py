"""Key-value caches of test features that TDA and BoostAdapter share."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._views import confident, entropies, marginal_entropy

LOW, HIGH = 0.2, 0.5  # entropy (nats over bits) between which an answer is uncertain
MASK = 0.03  # a class of a lower probability is what an uncertain image is not
NEGATIVE_ALPHA, NEGATIVE_BETA = 0.117, 1.0


Item = tuple[Tensor, float, "Tensor | None"]  # feature (d,), entropy, and probabilities (C,) where the cache is negative


class Cache:
    """Some items for each class, the most certain first; ``fifo`` keeps the latest instead. ``items`` is the method's state."""

    def __init__(self, capacity: int, items: dict[int, list[Item]], fifo: bool = False) -> None:
        self.capacity, self.items, self.fifo = capacity, items, fifo

    def insert(self, label: int, item: Item, capacity: int = 0) -> None:
        """Take an item in; a full class gives up its least certain one (or the new one), or the oldest."""
        most = capacity or self.capacity
        held = [*self.items.get(label, []), item]
        self.items[label] = held[-most:] if self.fifo else sorted(held, key=lambda i: i[1])[:most]

    def copy(self) -> Cache:
        """Another cache of the same items."""
        return Cache(self.capacity, {k: list(v) for k, v in self.items.items()}, self.fifo)

    def answer(self, query: Tensor, classes: int, beta: float) -> Tensor:
        """Sum over items of ``exp(-beta (1 - q k))`` times the item's value (C,): its class, or what it is not."""
        out = query.new_zeros(classes)
        for label, items in self.items.items():
            for key, _, p in items:
                weight = torch.exp(-beta * (1 - query @ key.to(query)))
                if p is None:
                    out[label] += weight
                else:
                    out += weight * ((p > MASK) & (p < 1.0)).to(out)
        return out


class Query(NamedTuple):
    """What one image asks with: feature, logits, entropy in nats, probabilities."""

    feature: Tensor
    logits: Tensor
    entropy: Tensor
    p: Tensor


def query_of(f: Tensor, text: Tensor, scale: float, share: float) -> Query:
    """Of views (V, d): one view by itself, else means over the confident ones, which are not normalised again."""
    logits = scale * f @ text.T
    if len(f) == 1:
        return Query(f[0], logits[0], entropies(logits)[0], logits[0].softmax(0))
    kept = confident(entropies(logits), share)
    return Query(f[kept].mean(0), logits[kept].mean(0), marginal_entropy(logits[kept]), logits[kept].softmax(1).mean(0))


def certainty(entropy: Tensor, classes: int) -> float:
    """Entropy in nats over its largest value in bits, as the authors have it."""
    return float(entropy) / math.log2(classes) if classes > 1 else 0.0

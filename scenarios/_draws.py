"""Orders of arrival, as index lists: labels (N,) and a generator in, rows (K,) out. Nothing here sees an image.

Every function is deterministic in its generator; unless said otherwise each row 0..N-1 appears exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from cl_bench import UserError

Rows = NDArray[np.int64]
MINIMUM = 10  # images that every chunk of the NOTE-style draw must hold
ATTEMPTS = 1000


def classes_of(labels: Rows) -> list[Rows]:
    """Rows of each class that occurs, classes in ascending order, rows in file order."""
    return [np.flatnonzero(labels == c) for c in np.unique(labels)]


def dirichlet(delta: float, parts: int, rows: int, rng: RandomState) -> NDArray[np.float64]:
    """``rows`` draws of Dir(delta) over ``parts``, (rows, parts). Where a tiny delta underflows to 0 / 0, the limit
    is taken: all mass on one part, chosen at random."""
    with np.errstate(invalid="ignore"):
        share = np.asarray(rng.dirichlet(np.full(parts, delta), size=rows))
    for row in np.flatnonzero(~np.isfinite(share).all(1)):
        share[row] = np.eye(parts)[rng.randint(parts)]
    return share


def sorted_by_class(labels: Rows) -> Rows:
    """Class after class: the "correlated" setting of ROID (Marsden et al., WACV 2024) without a concentration."""
    return np.argsort(labels, kind="stable")


def note_chunks(labels: Rows, delta: float, rng: RandomState) -> Rows:
    """Dirichlet chunks as in NOTE (Gong et al., NeurIPS 2022) and TTA-lib: as many chunks as classes; each class is
    spread over the chunks by Dir(delta), chunks that already hold N / C images get no more; classes lie in blocks
    inside a chunk. The whole draw is repeated until every chunk has ten images (half the mean where that is less).

    Raises:
        UserError: if a thousand draws leave some chunk too small.
    """
    n, members = len(labels), classes_of(labels)
    count = len(members)
    minimum = min(MINIMUM, n // (2 * count))
    for _ in range(ATTEMPTS):
        chunks: list[list[Rows]] = [[] for _ in range(count)]
        sizes = np.zeros(count)
        for k in range(count):
            rows = rng.permutation(members[k])
            room = sizes < n / count
            share = dirichlet(delta, count, 1, rng)[0] * room
            if not share.sum() > 0:  # a small delta can leave all its mass on full chunks: take an open one
                share[rng.choice(np.flatnonzero(room))] = 1.0
            cuts = np.floor(np.cumsum(share / share.sum())[:-1] * len(rows)).astype(np.int64)
            for j, part in enumerate(np.split(rows, cuts)):
                if len(part):
                    chunks[j].append(part)
                    sizes[j] += len(part)
        if sizes.min() >= minimum:
            return np.concatenate([chunk[b] for chunk in chunks for b in rng.permutation(len(chunk))])
    raise UserError(
        f"delta={delta} left a chunk of fewer than {minimum} images in {ATTEMPTS} draws from {n} images of {count} "
        "classes; use a larger delta or the generator 'rotta'."
    )


def rotta_slots(labels: Rows, gamma: float, rng: RandomState) -> Rows:
    """Practical TTA of RoTTA (Yuan et al., CVPR 2023): min(C, 100) slots; each class, in file order, is split over the
    slots by Dir(gamma); a slot is its class blocks in random order."""
    members = classes_of(labels)
    slots = min(len(members), 100)
    shares = dirichlet(gamma, slots, len(members), rng)
    parts = [
        np.split(rows, np.floor(np.cumsum(share)[:-1] * len(rows)).astype(np.int64))
        for rows, share in zip(members, shares, strict=True)
    ]
    return np.concatenate([parts[k][slot] for slot in range(slots) for k in rng.permutation(len(members))])


def label_shift(labels: Rows, imbalance: float, rng: RandomState, steps: int = 0, per_step: int = 100) -> Rows:
    """Online label shift of SAR (Niu et al., ICLR 2023): in each step one major class has probability r / (r + C - 1),
    every other 1 / (r + C - 1); images uniform with replacement. Major classes follow a shuffled list of all classes,
    again and again where there are more steps than classes; ``steps`` 0 = one per class (1,000 on ImageNet)."""
    members = classes_of(labels)
    count = len(members)
    steps = steps or count
    order: list[int] = []
    while len(order) < steps:
        order.extend(rng.permutation(count).tolist())
    total = imbalance + count - 1
    rows = []
    for major in order[:steps]:
        p = np.full(count, 1.0 / total)
        p[major] = imbalance / total
        drawn = rng.choice(count, size=per_step, p=p / p.sum())
        rows.append(np.array([members[c][rng.randint(len(members[c]))] for c in drawn], dtype=np.int64))
    return np.concatenate(rows)


def long_tail(labels: Rows, imbalance: float, direction: str, rng: RandomState) -> Rows:
    """A subset with n_c = n_max * rho^(-(c - 1) / (C - 1)) images of the c-th class, n_max the size of the smallest
    class (so that every count can be had), in random order; "backward" reverses the classes, "uniform" keeps n_max of
    each. Every row at most once, every class at least once."""
    members = classes_of(labels)
    count, largest = len(members), min(len(m) for m in members)
    rank = np.arange(count) / max(count - 1, 1)
    if direction == "uniform":
        sizes = np.full(count, largest)
    else:
        sizes = np.maximum(1, np.round(largest * float(imbalance) ** -rank)).astype(np.int64)
    if direction == "backward":
        sizes = sizes[::-1]
    kept = [rng.permutation(rows)[:size] for rows, size in zip(members, sizes, strict=True)]
    return rng.permutation(np.concatenate(kept))


def change_by_slots(batches: Sequence[int], delta: float, slots: int, rng: RandomState) -> Iterator[tuple[int, int]]:
    """Continual dynamic change of DPCore (Zhang et al., ICML 2025), Dirichlet form: the batches of each domain are
    spread over the slots by Dir(delta); each slot visits its domains once, in random order.

    Yields:
        (domain, consecutive batches), at least one batch each; all batches of every domain are spent.
    """
    share = dirichlet(delta, slots, len(batches), rng)
    ends = np.floor(np.cumsum(share, 1) * np.asarray(batches)[:, None]).astype(np.int64)
    ends[:, -1] = batches  # floor of a cumulative sum that is a hair below 1 would lose the last batch
    counts = np.diff(ends, axis=1, prepend=0)
    for slot in range(slots):
        for domain in rng.permutation(len(batches)):
            if counts[domain, slot]:
                yield int(domain), int(counts[domain, slot])


def change_by_blocks(batches: Sequence[int], rng: RandomState) -> Iterator[tuple[int, int]]:
    """Continual dynamic change, multinomial form (DPCore, ReservoirTTA): while batches remain, a random unfinished
    domain sends Uniform{1..remaining} consecutive batches. Yields as :func:`change_by_slots`."""
    left = np.array(batches, dtype=np.int64)
    while left.any():
        domain = int(rng.choice(np.flatnonzero(left)))
        block = int(rng.randint(1, left[domain] + 1))
        left[domain] -= block
        yield domain, block


def correlation(labels: Any, batch_size: int) -> dict[str, float]:
    """How correlated an order is: mean number of distinct classes per batch, and how often a label equals the one
    before it."""
    y = np.asarray(labels)
    distinct = [len(np.unique(y[i : i + batch_size])) for i in range(0, len(y), batch_size)]
    return {"classes_per_batch": float(np.mean(distinct)), "lag_1_agreement": float(np.mean(y[1:] == y[:-1]))}

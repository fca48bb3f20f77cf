"""Anatomy of forgetting: which images of an old test set were lost, after which experience, to which newly learned classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..records.results import Run
from .images import answers
from .memo import kept

__all__ = ["Anatomy", "anatomy"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Anatomy:
    """Percent of each test set's images, mean over ``n`` runs; rows: test sets (J), NaN for those learned last.

    to (J, E): right just after learning, wrong at the end, and now taken for a class of experience e (its own: confused
    within). after (J, T): lost at row t (right in the row before, wrong now); back (J, T): regained there.
    """

    to: Array
    after: Array
    back: Array
    n: int


def anatomy(runs: Sequence[Run]) -> Anatomy | None:
    """The mean over runs of one method whose matrices have one shape; None where no record keeps the true classes beside its
    predictions, or where experiences share classes, so that no answer belongs to one of them."""
    found = [a for run in runs if (a := kept([run], "anatomy", lambda run=run: _of(run))) is not None]  # type: ignore[misc]
    if not found or len({tuple(part.shape for part in a) for a in found}) != 1:
        return None
    to, after, back = (np.mean([a[k] for a in found], axis=0) for k in range(3))
    return Anatomy(to, after, back, len(found))


def _of(run: Run) -> tuple[Array, Array, Array] | None:
    groups = [[int(c) for c in e.get("classes") or ()] for e in run.record.get("experiences") or ()]
    taught = {label: k for k, classes in enumerate(groups) for label in classes}
    if not groups or len(taught) != sum(map(len, groups)):
        return None
    matrix = run.matrix
    try:
        held = answers(run)
    except UserError:
        return None  # a damaged file of arrays: the table's numbers do not need it
    rows, last = len(matrix.rows), len(matrix.rows) - 1
    to = np.full((len(matrix.columns), len(groups)), np.nan)
    after, back = (np.full((len(matrix.columns), rows), np.nan) for _ in range(2))
    for j, (column, learned) in enumerate(zip(matrix.columns, matrix.learned or (), strict=True)):
        if learned is None or learned >= last:
            continue
        truth = held.get(f"truth/{column}")
        found = [held.get(f"{matrix.rows[i]}/{column}") for i in range(learned, rows)]
        said = [s for s in found if s is not None]
        if truth is None or len(said) < len(found) or any(s.shape != truth.shape for s in said):
            return None
        right = [s == truth for s in said]
        lost = said[-1][right[0] & ~right[-1]]
        share = 100 / truth.size
        to[j] = [share * sum(taught.get(int(label)) == k for label in lost) for k in range(len(groups))]
        for t in range(1, len(right)):
            after[j, learned + t] = share * (right[t - 1] & ~right[t]).sum()
            back[j, learned + t] = share * (~right[t - 1] & right[t]).sum()
    return to, after, back

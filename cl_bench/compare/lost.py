"""Which images a run lost: right just after learning, wrong at the end, and what they are taken for now."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError
from ..records.results import Run
from .images import answers

__all__ = ["Lost", "lost_images"]


@dataclass(frozen=True)
class Lost:
    """One image: the test set's name and its row there, the true class and the one that it is taken for at the end; ``after``:
    the experience after which it was first wrong."""

    test_set: str
    row: int
    truth: int
    said: int
    after: str


def lost_images(run: Run, most: int = 8) -> list[Lost]:
    """Up to ``most`` images of each old test set, evenly spread over those that were lost; none where the record keeps no true
    classes beside its predictions."""
    try:
        held = answers(run)
    except UserError:
        return []  # a damaged file of arrays: the table's numbers do not need it
    matrix, out = run.matrix, list[Lost]()
    last = len(matrix.rows) - 1
    for column, learned in zip(matrix.columns, matrix.learned or (), strict=True):
        truth = held.get(f"truth/{column}")
        if truth is None or learned is None or learned >= last:
            continue
        said = [held.get(f"{matrix.rows[i]}/{column}") for i in range(learned, last + 1)]
        if any(s is None or s.shape != truth.shape for s in said):
            continue
        gone = ((said[0] == truth) & (said[-1] != truth)).nonzero()[0]  # type: ignore[index]
        for row in gone[::max(1, -(-len(gone) // most))]:
            first = next(k for k, s in enumerate(said) if s[row] != truth[row])  # type: ignore[index]
            out.append(Lost(column, int(row), int(truth[row]), int(said[-1][row]), matrix.rows[learned + first]))  # type: ignore[index]
    return out

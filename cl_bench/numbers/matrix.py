"""The accuracy matrix and every number that is computed from it.

``R[i, j]`` is the accuracy in percent on test set ``j`` after phase ``i``. Counts are kept, not rates: a cell that was
never measured is NaN, never 0, and matrices measured in parts can be added. Libraries disagree on what "forgetting" is
(four definitions below), so a record keeps ``R`` and every named variant is computed from it.

Notation: ``T`` rows, ``k`` the last row, ``d_j`` the row after which test set ``j`` had been learned: told by whoever
builds the matrix, never guessed from names or from a square shape. A column that no single row taught can neither be
forgotten nor transferred to. A row measured ``before`` any learning (zero-shot) is a baseline and enters no average. A
mean over cells is NaN as soon as one cell that its definition needs was not measured; only a *maximum over earlier
rows* is taken over the rows that were measured.

Sources: Lopez-Paz & Ranzato 2017 (GEM: transfer), Chaudhry et al. 2018 (forgetting, intransigence), Díaz-Rodríguez et
al. 2018, Zheng et al. 2023 (ZSCL: Transfer, Average, Last), and the code of Avalanche, Mammoth, PILOT, LibContinual,
Continuum and CapyMOA for their variants. numpy only: this module is the ground floor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .stream_metrics import BINS, COLLAPSE_SHARE, CalibrationBins, Stream, StreamEntry, collapsed, top_class_share

__all__ = ["BINS", "COLLAPSE_SHARE", "AccuracyMatrix", "CalibrationBins", "Stream", "StreamEntry", "collapsed",
           "top_class_share"]

FORGETTING = ("best", "learned", "best_any", "libcontinual")


def _mean(values: ArrayLike) -> float:
    """Plain mean; NaN for no values or where one is NaN."""
    array = np.asarray(values, dtype=float)
    return float(array.mean()) if array.size else math.nan


def _by_name(rows: Sequence[str], columns: Sequence[str]) -> tuple[int | None, ...]:
    """How records read that were made before they said which row taught which column: by equal names, each row once."""
    once = len(set(rows)) == len(rows)
    return tuple(rows.index(name) if once and name in rows else None for name in columns)


@dataclass(frozen=True, eq=False)
class AccuracyMatrix:
    """Counts of correct and measured images per (phase, test set).

    rows: names of the T phases, in the order of the stream. columns: names of the C test sets. correct, total: integer
    arrays (T, C); ``total == 0`` means not measured. learned: per column the row after which it had been learned, or
    None where no single row taught it. All None, the default: every column counts as seen from the first row on, as for
    one common test set, and nothing of it can be forgotten. before: whether the first row was measured before anything
    was learned.

    Raises ValueError for shapes that do not fit, negative counts, or more correct than measured.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    correct: NDArray[np.int64]
    total: NDArray[np.int64]
    learned: tuple[int | None, ...] | None = None
    before: bool = False

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "rows", tuple(map(str, self.rows)))
        set_(self, "columns", tuple(map(str, self.columns)))
        shape = (len(self.rows), len(self.columns))
        for name in ("correct", "total"):
            array = np.array(getattr(self, name), dtype=np.int64)
            array = array.reshape(shape) if array.size == 0 == shape[0] * shape[1] else array
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}; {shape[0]} rows and {shape[1]} columns need {shape}")
            array.setflags(write=False)
            set_(self, name, array)
        if (self.correct < 0).any() or (self.correct > self.total).any():
            raise ValueError("each cell needs 0 <= correct <= total")
        learned = (None,) * shape[1] if self.learned is None else tuple(self.learned)
        if len(learned) != shape[1] or any(d is not None and not self.before <= d < shape[0] for d in learned):
            raise ValueError(f"learned needs one number of a row of learning (or None) per column, got {learned}")
        set_(self, "learned", learned)

    @classmethod
    def empty(cls, rows: Iterable[str], columns: Iterable[str], learned: Sequence[int | None] | None = None
              ) -> AccuracyMatrix:
        """A matrix in which nothing has been measured yet."""
        rows, columns = tuple(rows), tuple(columns)
        zeros = np.zeros((len(rows), len(columns)), dtype=np.int64)
        return cls(rows, columns, zeros, zeros, None if learned is None else tuple(learned))

    @classmethod
    def from_rates(cls, percent: ArrayLike, size: int = 100_000, rows: Sequence[str] | None = None,
                   columns: Sequence[str] | None = None, learned: Sequence[int | None] | str = "diagonal",
                   before: bool = False) -> AccuracyMatrix:
        """From a published table of percentages (NaN = not measured), as if each test set held ``size`` images.

        learned: as for the class, or ``"diagonal"``: test set j is what the j-th experience taught, as published tables
        have it; the table must then be square (``before`` not counted).
        """
        array = np.atleast_2d(np.asarray(percent, dtype=float))
        total = np.where(np.isnan(array), 0, size).astype(np.int64)
        correct = np.rint(np.nan_to_num(array) * size / 100).astype(np.int64)
        high, wide = array.shape
        if isinstance(learned, str):
            if learned != "diagonal" or high - before != wide:
                raise ValueError(f"say which row taught each of the {wide} columns: {high} rows have no diagonal")
            learned = range(int(before), high)
        return cls(tuple(rows or [f"task {i + 1}" for i in range(high)]),
                   tuple(columns or [f"task {i + 1}" for i in range(wide)]), correct, total, tuple(learned), before)

    def with_cell(self, row: int, column: int, correct: int, total: int) -> AccuracyMatrix:
        """A copy with one cell set (row and column by number)."""
        c, n = self.correct.copy(), self.total.copy()
        c[row, column], n[row, column] = correct, total
        return replace(self, correct=c, total=n)

    def __add__(self, other: AccuracyMatrix) -> AccuracyMatrix:
        """Pool the counts of two matrices over the same rows and columns."""
        if (self.rows, self.columns, self.learned, self.before) != (other.rows, other.columns, other.learned, other.before):
            raise ValueError("only matrices over the same rows and columns can be added")
        return replace(self, correct=self.correct + other.correct, total=self.total + other.total)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AccuracyMatrix) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def percent(self) -> NDArray[np.float64]:
        """R, float (T, C), in percent, read-only; NaN where not measured."""
        rates = np.where(self.total > 0, 100.0 * self.correct / np.maximum(self.total, 1), np.nan)
        rates.setflags(write=False)
        return rates

    def __getitem__(self, index: Any) -> Any:
        return self.percent[index]

    def so_far(self) -> AccuracyMatrix:
        """Without the trailing rows in which nothing is measured yet: what an unfinished run has."""
        done = np.flatnonzero((self.total > 0).any(axis=1))
        stop = int(done[-1]) + 1 if done.size else 0
        learned = tuple(d if d is not None and d < stop else None for d in self._learned)
        measured = set(np.flatnonzero(self.total[:stop].any(axis=0)).tolist())
        keep = [j for j, d in enumerate(learned) if d is not None or j in measured]
        if stop == len(self.rows) and len(keep) == len(self.columns):
            return self
        return AccuracyMatrix(self.rows[:stop], tuple(self.columns[j] for j in keep), self.correct[:stop][:, keep],
                              self.total[:stop][:, keep], tuple(learned[j] for j in keep), self.before)

    # -- which cells a definition needs -------------------------------------------------------------------------------

    @property
    def _learned(self) -> tuple[int | None, ...]:
        assert self.learned is not None
        return self.learned

    @property
    def _start(self) -> NDArray[np.int64]:
        """(C,) first row at which a column counts as seen; T (never) for an unlearned column beside learned ones."""
        none = int(self.before) if all(d is None for d in self._learned) else len(self.rows)
        return np.array([none if d is None else d for d in self._learned], dtype=np.int64)

    def _old(self) -> list[int]:
        """Columns learned before the last row: those that can be forgotten."""
        return [j for j, d in enumerate(self._learned) if d is not None and d < len(self.rows) - 1]

    # -- accuracy -----------------------------------------------------------------------------------------------------

    def incremental_accuracies(self, pooled: bool = False) -> NDArray[np.float64]:
        """A_t per row (T,), percent: mean over the test sets learned so far, each set weighing the same (GEM, Mammoth,
        RanPAC), or ``pooled``: each image weighing the same (PILOT, SLCA, InfLoRA). NaN before anything is learned."""
        out, start = np.full(len(self.rows), np.nan), self._start
        for i in range(len(self.rows)):
            seen = start <= i
            if not seen.any() or (self.total[i, seen] == 0).any():
                continue
            out[i] = 100.0 * self.correct[i, seen].sum() / self.total[i, seen].sum() if pooled \
                else self.percent[i, seen].mean()
        return out

    def average_accuracy(self, pooled: bool = False) -> float:
        """A_T: average accuracy after the last row, over everything learned."""
        return float(self.incremental_accuracies(pooled)[-1]) if self.rows else math.nan

    def average_incremental_accuracy(self, pooled: bool = False) -> float:
        """A-bar: mean of A_t over the rows after which something new had been learned, the first included."""
        steps = sorted({d for d in self._learned if d is not None}) or list(range(self.before, len(self.rows)))
        return _mean(self.incremental_accuracies(pooled)[steps])

    def anytime(self, pooled: bool = False) -> float:
        """Mean of A_t over every measured row since the first learning (evaluation points on a uniform grid)."""
        curve = self.incremental_accuracies(pooled)
        return _mean(curve[np.isfinite(curve)])

    def last(self) -> float:
        """Mean of the last row over ALL test sets, learned or not (ZSCL's "Last")."""
        return _mean(self.percent[-1]) if len(self.rows) > self.before else math.nan

    def average_all(self) -> float:
        """Mean of all cells but those measured before any learning (ZSCL's "Average")."""
        return _mean(self.percent[self.before:])

    def average_lower_triangle(self) -> float:
        """Mean over cells at or after learning (Díaz-Rodríguez's A)."""
        return _mean(self.percent[np.arange(len(self.rows))[:, None] >= self._start[None, :]])

    def plasticity(self, earlier: bool = False) -> float:
        """Mean accuracy on a test set right after it was learned: mean of the diagonal; ``earlier``: over the test sets
        of :meth:`stability` alone, so that stability minus it is the backward transfer."""
        taken = self._old() if earlier else range(len(self.columns))
        return _mean([self.percent[d, j] for j in taken if (d := self._learned[j]) is not None])

    def stability(self) -> float:
        """Mean of the last row over test sets learned before it."""
        old = self._old()
        return _mean(self.percent[-1, old]) if old else math.nan

    def intransigence(self, reference: Sequence[float]) -> float:
        """Mean of (reference - diagonal); ``reference`` is the percent that joint training reaches, one per column."""
        return _mean([reference[j] - self.percent[d, j] for j, d in enumerate(self._learned) if d is not None])

    # -- forgetting and transfer --------------------------------------------------------------------------------------

    def forgetting_per_column(self, since: str = "best", row: int = -1) -> NDArray[np.float64]:
        """Percentage points lost per test set (C,) at ``row``; NaN where not learned before it. Positive = forgotten.

        since: ``"best"`` best value since learning, rows before ``row`` (Chaudhry; FACIL, Continuum, Renate);
        ``"learned"`` the value right after learning (Avalanche); ``"best_any"`` best value including ``row`` itself, so
        never negative (Mammoth, PILOT).
        """
        if since not in FORGETTING[:3]:
            raise ValueError(f"since must be one of {', '.join(FORGETTING[:3])}, not {since!r}")
        return self._lost[since][row].copy() if self.rows else np.full(len(self.columns), np.nan)

    @cached_property
    def _lost(self) -> dict[str, NDArray[np.float64]]:
        """Per definition (T, C): points lost per test set at every row; NaN where not learned before it."""
        r, row = self.percent, np.arange(len(self.rows))[:, None]
        start = np.array([len(self.rows) if d is None else d for d in self._learned])
        best_any = np.fmax.accumulate(np.where(row >= start, r, np.nan), axis=0)
        best = np.concatenate([np.full((1, len(self.columns)), np.nan), best_any[:-1]])
        learned = np.array([math.nan if d is None else r[d, j] for j, d in enumerate(self._learned)])
        tops = {"best": best, "learned": learned, "best_any": best_any}
        return {since: np.where(row > start, top - r, np.nan) for since, top in tops.items()}

    def forgetting(self, since: str = "best", row: int = -1) -> float:
        """Mean over test sets learned before ``row`` (see :meth:`forgetting_per_column`). ``"libcontinual"``: learned
        minus last, summed without the last two tasks but divided by T - 1, as that library's code does."""
        if since == "libcontinual":
            lost = self.forgetting_per_column("learned")
            order = sorted(self._old(), key=lambda j: self._start[j])
            return float(sum(lost[j] for j in order[:-1]) / len(order)) if order else math.nan
        k = range(len(self.rows))[row] if self.rows else 0
        old = [j for j, d in enumerate(self._learned) if d is not None and d < k]
        lost = self.forgetting_per_column(since, row)
        return _mean(lost[old])

    def forgetting_curve(self, since: str = "best") -> NDArray[np.float64]:
        """Forgetting after each row (T,); NaN at the first."""
        return np.array([self.forgetting(since, i) for i in range(len(self.rows))], dtype=float)

    def backward_transfer(self, kind: str = "gem") -> float:
        """BWT in points, negative = forgetting. ``"gem"``: mean of R[k, j] - R[d_j, j]; ``"positive"``: its positive
        part per test set; ``"all_pairs"`` (Continuum, CapyMOA): mean over all later rows, not only the last;
        ``"libcontinual"``: all pairs without adjacent ones, still divided by T(T-1)/2."""
        if kind in ("gem", "positive"):
            change = -self.forgetting_per_column("learned")[self._old()]
            return _mean(np.maximum(change, 0) + 0 * change if kind == "positive" else change)
        if kind not in ("all_pairs", "libcontinual"):
            raise ValueError(f"kind must be gem, positive, all_pairs or libcontinual, not {kind!r}")
        r, gap = self.percent, 1 if kind == "all_pairs" else 2
        pairs = [(i, j, d) for j, d in enumerate(self._learned) if d is not None for i in range(d + 1, len(self.rows))]
        changes = [float(r[i, j] - r[d, j]) for i, j, d in pairs if i - d >= gap]
        return sum(changes) / len(pairs) if changes else math.nan

    def forward_transfer(self, baseline: float | Sequence[float] | None = None) -> float:
        """FWT (GEM): mean over test sets j, but the first learned, of R[d_j - 1, j] - b_j.

        baseline: b_j in percent (one number, or one per column; 0 gives Continuum's variant without a baseline). None
        takes the row measured before any learning; NaN where there is none.
        """
        taught = [d for d in self._learned if d is not None]
        later = [(j, d) for j, d in enumerate(self._learned) if d is not None and d > min(taught)]
        if baseline is None:
            base = self.percent[0] if self.before else np.full(len(self.columns), np.nan)
        else:
            base = np.broadcast_to(np.asarray(baseline, dtype=float), (len(self.columns),))
        return _mean([self.percent[d - 1, j] - base[j] for j, d in later])

    def transfer(self, kind: str = "columns") -> float:
        """Accuracy on test sets not learned yet (ZSCL's "Transfer"; the row before any learning does not count).

        kind: ``"columns"`` mean of column means (ZSCL); ``"rows"`` mean of row means (Mammoth); ``"cells"`` mean of
        the strict upper triangle (CapyMOA's FWT).
        """
        first = min((d for d in self._learned if d is not None), default=0)
        future = [(i, j) for j, d in enumerate(self._learned) if d is not None for i in range(first, d)]
        if kind == "cells":
            return _mean([self.percent[i, j] for i, j in future])
        if kind not in ("columns", "rows"):
            raise ValueError(f"kind must be columns, rows or cells, not {kind!r}")
        groups: dict[int, list[float]] = {}
        for i, j in future:
            groups.setdefault(j if kind == "columns" else i, []).append(self.percent[i, j])
        return _mean([_mean(values) for values in groups.values()])

    # -- JSON ----------------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Plain lists; a cell that was not measured is null in both counts; ``before`` only where there is that row."""
        def cells(a: NDArray[np.int64]) -> list[list[int | None]]:
            return [[int(v) if n else None for v, n in zip(row, ns, strict=True)]
                    for row, ns in zip(a, self.total, strict=True)]
        return {"rows": list(self.rows), "columns": list(self.columns), "correct": cells(self.correct),
                "total": cells(self.total), "learned": list(self._learned), **({"before": True} if self.before else {})}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AccuracyMatrix:
        """The inverse of :meth:`to_json`; raises ValueError where the shapes do not fit. A record made before records
        said which row taught which column is read by equal names."""
        def cells(name: str) -> NDArray[np.int64]:
            shape = (len(data["rows"]), len(data["columns"]))
            values = [[0 if v is None else int(v) for v in row] for row in data[name]]
            return np.array(values, dtype=np.int64) if all(shape) else np.zeros(shape, dtype=np.int64)
        rows, columns = tuple(map(str, data["rows"])), tuple(map(str, data["columns"]))
        learned = data["learned"] if "learned" in data else _by_name(rows, columns)
        return cls(rows, columns, cells("correct"), cells("total"), tuple(learned), bool(data.get("before", False)))

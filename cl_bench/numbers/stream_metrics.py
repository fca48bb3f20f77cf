"""Test-time streams: online error per domain, calibration, collapse and drift, all from counts that add up.

Definitions: online error of a domain = wrong / seen, of the answers given when each batch arrived (images missed by a
method that is too slow count as wrong; they are in ``total``); mean error = unweighted mean over domains, pooled error
= over images; drift = error at the last visit minus the error at the first (Döbler 2024; Press et al. 2023). Expected
calibration error with 15 equal-width bins on the highest probability (Guo et al. 2017). numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["BINS", "COLLAPSE_SHARE", "CalibrationBins", "Stream", "StreamEntry", "collapsed", "top_class_share"]

BINS = 15
COLLAPSE_SHARE = 0.95


def top_class_share(predictions_per_class: ArrayLike) -> float:
    """Share (0..1) of the most often predicted class, from counts per class; NaN without predictions."""
    counts = np.asarray(predictions_per_class, dtype=float)
    return float(counts.max() / counts.sum()) if counts.size and counts.sum() > 0 else math.nan


def collapsed(share: float, classes_present: int = 2, threshold: float = COLLAPSE_SHARE) -> bool:
    """True where one class takes at least ``threshold`` of a domain's predictions although the domain holds several
    classes: the model has collapsed, whatever its error says."""
    return classes_present > 1 and share >= threshold


@dataclass(frozen=True, eq=False)
class CalibrationBins:
    """Per-bin sums from which the expected calibration error follows: each array (B,), equal-width bins on (0, 1].

    count: images; confidence: sum of highest probabilities; correct: right answers. Bins of two batches are added.
    """

    count: NDArray[np.int64]
    confidence: NDArray[np.float64]
    correct: NDArray[np.int64]

    @classmethod
    def zeros(cls, bins: int = BINS) -> CalibrationBins:
        """No image yet."""
        return cls(np.zeros(bins, np.int64), np.zeros(bins), np.zeros(bins, np.int64))

    @classmethod
    def of(cls, confidence: ArrayLike, correct: ArrayLike, bins: int = BINS) -> CalibrationBins:
        """From N highest probabilities in [0, 1] and N flags; raises ValueError outside [0, 1] or where one is NaN."""
        p, right = np.asarray(confidence, dtype=float).ravel(), np.asarray(correct, dtype=bool).ravel()
        if p.shape != right.shape:
            raise ValueError(f"{p.size} confidences for {right.size} answers")
        if not ((p >= 0) & (p <= 1 + 1e-6)).all():
            raise ValueError("confidences must be probabilities in [0, 1]")
        index = np.clip(np.ceil(p * bins).astype(np.int64) - 1, 0, bins - 1)
        return cls(np.bincount(index, minlength=bins), np.bincount(index, weights=p, minlength=bins).astype(np.float64),
                   np.bincount(index, weights=right, minlength=bins).astype(np.int64))

    def __add__(self, other: CalibrationBins) -> CalibrationBins:
        return CalibrationBins(self.count + other.count, self.confidence + other.confidence,
                               self.correct + other.correct)

    def ece(self) -> float:
        """Expected calibration error in percent; NaN without images."""
        n = self.count.sum()
        return float(100.0 * np.abs(self.correct - self.confidence).sum() / n) if n else math.nan

    def to_json(self) -> dict[str, list[float]]:
        """Three plain lists."""
        return {"count": self.count.tolist(), "confidence": self.confidence.tolist(), "correct": self.correct.tolist()}

    @classmethod
    def from_json(cls, data: Mapping[str, Sequence[float]]) -> CalibrationBins:
        """The inverse of :meth:`to_json`."""
        return cls(np.asarray(data["count"], np.int64), np.asarray(data["confidence"], float),
                   np.asarray(data["correct"], np.int64))


@dataclass(frozen=True)
class StreamEntry:
    """One domain of a test-time stream, as it was visited. ``ece`` in percent, ``top_class_share`` in 0..1;
    ``unlabelled``: what the answers say without labels (:class:`cl_bench.label_free.sums.UnlabelledSums`)."""

    name: str
    domain: str
    visit: int
    total: int
    correct: int
    ece: float | None = None
    top_class_share: float | None = None
    collapsed: bool = False
    nonfinite: int = 0
    missed: int = 0
    seconds: float | None = None
    bins: Mapping[str, Sequence[float]] | None = None
    unlabelled: Mapping[str, float] | None = None

    @property
    def error(self) -> float:
        """Online error in percent; NaN where nothing was seen."""
        return 100.0 * (1 - self.correct / self.total) if self.total else math.nan

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StreamEntry:
        """Known keys are taken; keys of a newer writer are left out."""
        known = {f.name for f in fields(cls)}
        return cls(**{"domain": data["name"], "visit": 1, **{k: v for k, v in data.items() if k in known}})

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; ``bins`` and ``unlabelled`` only where kept."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}  # asdict copies every number; a record has thousands
        return {k: dict(v) if isinstance(v, Mapping) else v for k, v in held.items()
                if not (k in ("bins", "unlabelled") and v is None)}


@dataclass(frozen=True)
class Stream:
    """The domains of a run's stream, in the order in which they came."""

    entries: tuple[StreamEntry, ...]

    @classmethod
    def from_json(cls, data: Iterable[Mapping[str, Any]]) -> Stream:
        """From the record's list."""
        return cls(tuple(StreamEntry.from_json(entry) for entry in data))

    def to_json(self) -> list[dict[str, Any]]:
        """The record's list."""
        return [entry.to_json() for entry in self.entries]

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def errors(self) -> NDArray[np.float64]:
        """Online error in percent per entry, in stream order."""
        return np.array([entry.error for entry in self.entries], dtype=float)

    def mean_error(self) -> float:
        """Unweighted mean over entries, percent; NaN for an empty stream."""
        return float(self.errors.mean()) if self.entries else math.nan

    def pooled_error(self) -> float:
        """Over all images, percent."""
        total = sum(e.total for e in self.entries)
        return 100.0 * (1 - sum(e.correct for e in self.entries) / total) if total else math.nan

    def ece(self) -> float:
        """Calibration error of the whole stream, percent: from pooled bins where every entry kept them, else the
        image-weighted mean over entries (an upper bound of the pooled value)."""
        if not self.entries:
            return math.nan
        if all(e.bins is not None for e in self.entries):
            pooled = CalibrationBins.from_json(self.entries[0].bins or {})
            for e in self.entries[1:]:
                pooled = pooled + CalibrationBins.from_json(e.bins or {})
            return pooled.ece()
        if any(e.ece is None for e in self.entries) or not sum(e.total for e in self.entries):
            return math.nan
        return float(np.average([e.ece or 0.0 for e in self.entries], weights=[e.total for e in self.entries]))

    def visit_errors(self) -> dict[int, float]:
        """Mean error in percent per visit number."""
        visits = sorted({e.visit for e in self.entries})
        return {v: float(np.mean([e.error for e in self.entries if e.visit == v])) for v in visits}

    def drift(self) -> float:
        """Error at the last visit minus error at the first, points, over domains seen in both; NaN for one visit."""
        visits = sorted({e.visit for e in self.entries})
        if len(visits) < 2:
            return math.nan
        by = {(e.domain, e.visit): e.error for e in self.entries}
        both = [by[d, visits[-1]] - by[d, visits[0]] for d in sorted({e.domain for e in self.entries})
                if (d, visits[-1]) in by and (d, visits[0]) in by]
        return float(np.mean(both)) if both else math.nan

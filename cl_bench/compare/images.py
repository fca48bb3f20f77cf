"""Evidence image by image: what each test image adds to a metric in each run, from the predictions that records keep."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..numbers.matrix import AccuracyMatrix
from ..numbers.metrics import all_metrics
from ..numbers.statistics.images import ImageTest, image_test
from ..records.results import Run
from .comparison import Group, Row
from .memo import kept

__all__ = ["BY_IMAGE", "Evidence", "answers", "evidence", "group_evidence", "image_parts"]

BY_IMAGE = ("average_accuracy", "forgetting", "forgetting_learned", "mean_error")


@dataclass(frozen=True, eq=False)
class Frame:
    """The N images that a run was tested on. ``strata`` (N,): the number of the test set; ``identity`` (N, 2): what says that
    an image of another run is the same one; ``order`` (N,): by identity; ``ordered``: both in that order."""

    strata: NDArray[np.int64]
    identity: NDArray[np.int64]
    order: NDArray[np.int64]
    ordered: tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Parts:
    """What N images add to a metric of one run: ``values`` (N,) sum up to it."""

    values: NDArray[np.float64]
    frame: Frame


Held = dict[str, Any]  # what a run's file of arrays holds


@lru_cache(maxsize=1024)
def _arrays(folder: str, stamp: int) -> dict[str, Any]:
    return Run(Path(folder), {}, True).arrays()


def answers(run: Run) -> dict[str, Any]:
    """Predictions and truths of a run (``arrays.npz``), read once; empty where there are none."""
    try:
        stamp = os.stat(f"{run.folder}/arrays.npz").st_mtime_ns
    except OSError:
        return {}
    return _arrays(str(run.folder), stamp)


def _right(held: Held, key: str, truth: str) -> NDArray[np.float64] | None:
    if key not in held or truth not in held or held[key].shape != held[truth].shape:
        return None
    return (held[key] == held[truth]).astype(float)


def image_parts(run: Run, metric: str) -> Parts | None:
    """The parts of a metric; None where the record keeps no truth beside its predictions, where the metric was not
    measured, and where the parts would not add up to the recorded number."""
    return kept([run], ("parts", metric), lambda: _image_parts(run, metric))


def _image_parts(run: Run, metric: str) -> Parts | None:
    try:
        held = answers(run)
        found = _stream_parts(held, len(run.stream)) if metric == "mean_error" else _matrix_parts(held, run.matrix, metric)
    except UserError:
        return None  # a damaged file of arrays: the table's numbers do not need it
    recorded = run.metrics.get(metric)
    if found is None or recorded is None or not math.isclose(float(found.values.sum()), recorded, abs_tol=1e-6):
        return None
    return found


def _stream_parts(held: Held, segments: int) -> Parts | None:
    keys = sorted((k for k in held if k.startswith("stream/")), key=lambda k: int(k.split("/")[1]))
    if len(keys) != segments:
        return None  # segments that mix domains: the mean over domains is not one over segments
    wrong = [_right(held, key, f"truth/{key}") for key in keys]
    return _joined(held, [(1 - w, f"truth/{key}") if w is not None else None for w, key in zip(wrong, keys, strict=True)])


def _matrix_parts(held: Held, matrix: AccuracyMatrix, metric: str) -> Parts | None:
    last, cells = len(matrix.rows) - 1, []
    for j, (column, learned) in enumerate(zip(matrix.columns, matrix.learned or (), strict=True)):
        truth = f"truth/{column}"
        now = _right(held, f"{matrix.rows[last]}/{column}", truth)
        if metric == "average_accuracy":
            cells.append((now, truth) if now is not None else None)
        elif learned is not None and learned < last:
            past = matrix.percent[learned:last, j]
            at_once = metric == "forgetting_learned" or not np.isfinite(past).any()
            row = learned if at_once else learned + int(np.nanargmax(past))
            then = _right(held, f"{matrix.rows[row]}/{column}", truth)
            cells.append((then - now, truth) if now is not None and then is not None else None)
    return _joined(held, cells)


def _joined(held: Held, cells: Sequence[tuple[NDArray[np.float64], str] | None]) -> Parts | None:
    """Every test set weighs the same."""
    known = [cell for cell in cells if cell is not None and cell[0].size]
    if not known or len(known) < len(cells):
        return None
    values = np.concatenate([100 * right / right.size / len(known) for right, _ in known])
    return Parts(values, _frame(tuple(held[truth].astype(np.int64).tobytes() for _, truth in known)))


@lru_cache(maxsize=512)  # the runs of a table have the same test sets
def _frame(labels: tuple[bytes, ...]) -> Frame:
    """Of test sets by their labels: an image is known by its label and by which of that label's it is in its test set, or,
    where two test sets share labels, by its test set and row."""
    named = [_named(of) for of in labels]
    identity = [found for found, _ in named]
    if sum(len(classes) for _, classes in named) > len(frozenset().union(*(classes for _, classes in named))):
        identity = [np.stack([np.full(len(i), k), np.arange(len(i))], axis=1) for k, i in enumerate(identity)]
    every, strata = np.concatenate(identity), np.repeat(np.arange(len(identity)), [len(i) for i in identity])
    order = np.lexsort(every.T)
    return Frame(strata, every, order, (strata[order], every[order]))


@lru_cache(maxsize=512)  # the runs of a table have the same test sets
def _named(labels: bytes) -> tuple[NDArray[np.int64], frozenset[int]]:
    """(label, which of that label's it is) of every image, (n, 2), and the labels that there are."""
    of = np.frombuffer(labels, np.int64)
    order = np.argsort(of, kind="stable")
    rank = np.empty(of.size, np.int64)
    found, starts, counts = np.unique(of[order], return_index=True, return_counts=True)
    rank[order] = np.arange(of.size) - np.repeat(starts, counts)
    return np.stack([of, rank], axis=1), frozenset(found.tolist())


@dataclass(frozen=True)
class Evidence:
    """A pair of methods by one metric, image by image: ``test`` is a minus b."""

    a: str
    b: str
    metric: str
    test: ImageTest


def evidence(a: Row, b: Row, metric: str) -> Evidence | None:
    """The paired test over images and runs on the runs that both have; None where a record lacks what it takes."""
    keys = sorted((k for k in a.runs if k in b.runs), key=repr)
    both = [row.runs[k] for row in (a, b) for k in keys]
    return kept(both, ("evidence", metric, a.method, b.method), lambda: _evidence(a, b, metric, keys))


def _evidence(a: Row, b: Row, metric: str, keys: Sequence[Any]) -> Evidence | None:
    found: list[tuple[Frame, NDArray[np.float64]]] = []
    for k in keys:  # where one pair lacks them, the others need not be read
        x = image_parts(a.runs[k], metric)
        y = image_parts(b.runs[k], metric) if x is not None else None
        if x is None or y is None or not (x.frame is y.frame or np.array_equal(x.frame.identity, y.frame.identity)):
            return None
        found.append((x.frame, x.values - y.values))
    if not found:
        return None
    first = found[0][0]
    others = {id(frame): frame for frame, _ in found if frame is not first}.values()
    if all(np.array_equal(frame.ordered[1], first.ordered[1]) for frame in others):
        # the same images in every run, grouped into other test sets by another class order at most
        parts = np.stack([d[frame.order] for frame, d in found])
        one = all(np.array_equal(frame.ordered[0], first.ordered[0]) for frame in others)
        strata = first.ordered[0] if one else first.ordered[1][:, 0]
    else:  # every run has images of its own
        sizes = [d.size for _, d in found]
        parts, start = np.zeros((len(found), sum(sizes))), 0
        for r, (_, d) in enumerate(found):
            parts[r, start:start + d.size], start = d, start + d.size
        strata = np.concatenate([frame.strata + r * (int(frame.strata.max()) + 1) for r, (frame, _) in enumerate(found)])
    return Evidence(a.method, b.method, metric, image_test(parts, strata))


def group_evidence(group: Group, metric: str, most: int = 12, against: int = 40) -> list[Evidence]:
    """Every pair of a table's methods; of more than ``most`` methods, each against the best alone, and of more than
    ``against`` those that are best: a sweep over a thousand settings would have all of its predictions read."""
    rows = [row for row in group.rows if row.cells[metric].n]
    if len(rows) <= most:
        pairs = [(a, b) for i, a in enumerate(rows) for b in rows[i + 1:]]
    else:
        best = next((row for row in rows if row.standings.get(metric) and row.standings[metric].best), None)
        sign = -1 if all_metrics()[metric].higher else 1
        near = sorted(rows, key=lambda row: sign * row.cells[metric].mean)[:against]
        pairs = [(best, row) for row in near if row is not best] if best is not None else []
    return [found for a, b in pairs if (found := evidence(a, b, metric)) is not None]

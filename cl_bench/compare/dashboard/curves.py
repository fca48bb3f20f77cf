"""Curves of a table's methods: means over runs with 95 % bands, ready to be drawn.

A method's curves come from its finished runs; one that has none yet shows what its unfinished runs have measured so
far, and says so (``partial``). Runs whose stream or matrix has another shape than most are left out and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...numbers.matrix import FORGETTING, AccuracyMatrix
from ...numbers.statistics import t_bands
from ...records.results import Run
from ..comparison import Group, Row
from ..memo import kept

__all__ = ["learn_curves", "rounded", "stream_curves"]


def rounded(values: Any, digits: int = 3) -> Any:
    """Nested lists of numbers, rounded; None for what is not finite."""
    array = np.asarray(values, dtype=float)
    if array.ndim > 1:
        return [rounded(row, digits) for row in array]
    return [round(float(v), digits) if np.isfinite(v) else None for v in array]


def _bands(values: Any) -> list[list[float | None]]:
    return [rounded(part) for part in t_bands(np.asarray(values, dtype=float))]


def _members(group: Group, row: Row) -> tuple[list[Run], bool]:
    """The runs a method's curves are made of, and whether they are unfinished."""
    if row.runs:
        return list(row.runs.values()), False
    return [r for r in group.runs if r.method == row.method and r.status in ("running", "stopped")], True


def _names(lists: Sequence[Sequence[str]], word: str) -> list[str]:
    """Common names; numbered ones where class orders give each run its own."""
    first = list(lists[0])
    return first if all(list(names) == first for names in lists) else [f"{word} {i + 1}" for i in range(len(first))]


def learn_curves(group: Group) -> dict[str, Any] | None:
    """Accuracy matrices, A_t and forgetting per phase for each method; None where no run has a matrix, and for a
    test-time stream, whose matrix holds nothing but the clean source before and after."""
    if group.kind == "stream":
        return None
    chosen = {row.method: _members(group, row) for row in group.rows}
    measured = [r for runs, _ in chosen.values() for r in runs if r.matrix.total.any()]
    if not measured:
        return None
    (shape, common), = Counter(r.matrix.percent.shape for r in measured).most_common(1)
    fitting = [r for r in measured if r.matrix.percent.shape == shape]
    out: dict[str, Any] = {
        "phases": _names([r.matrix.rows for r in fitting], "experience"),
        "sets": _names([r.matrix.columns for r in fitting], "test set"),
        "learned": list(fitting[0].matrix.learned or ()), "left_out": len(measured) - common, "methods": {}}
    fit = set(map(id, fitting))
    for method, (runs, partial) in chosen.items():
        members = [r for r in runs if id(r) in fit]
        if members:
            out["methods"][method] = kept(members, ("learn", partial), lambda of=members, partial=partial: _learn(  # type: ignore[misc]
                [r.matrix for r in of], partial))
    return out


def _learn(matrices: list[AccuracyMatrix], partial: bool) -> dict[str, Any]:
    mean = t_bands([m.percent for m in matrices])[0]
    return {"n": len(matrices), "partial": partial, "matrix": rounded(mean),
            "anytime": _bands([m.incremental_accuracies() for m in matrices]),
            "forgetting": {since: _bands([m.forgetting_curve(since) for m in matrices]) for since in FORGETTING[:3]},
            "plasticity": _bands([[m.plasticity(earlier=True)] for m in matrices]),
            "stability": _bands([[m.stability()] for m in matrices])}


def stream_curves(group: Group) -> dict[str, Any] | None:
    """Online error per domain in stream order for each method; None where no run has a stream."""
    chosen = {row.method: _members(group, row) for row in group.rows}
    measured = [r for runs, _ in chosen.values() for r in runs if len(r.stream)]
    if not measured:
        return None
    longest = max(measured, key=lambda r: len(r.stream)).stream.entries
    names = [(e.domain, e.visit) for e in longest]
    fitting = [r for r in measured if [(e.domain, e.visit) for e in r.stream.entries] == names[:len(r.stream)]]
    ordered = len(fitting) == len(measured)
    if not ordered:  # domains come in another order in each run: only the place in the stream is common
        fitting = [r for r in measured if len(r.stream) <= len(longest)]
    out: dict[str, Any] = {
        "entries": [{"name": e.name if ordered else f"domain {i + 1}", "domain": e.domain if ordered else str(i + 1),
                     "visit": e.visit} for i, e in enumerate(longest)],
        "common_order": ordered, "methods": {}}
    fit = set(map(id, fitting))
    for method, (runs, partial) in chosen.items():
        members = [r for r in runs if id(r) in fit]
        if members:
            out["methods"][method] = kept(members, ("stream", partial, len(longest)),
                                          lambda of=members, partial=partial: _stream(  # type: ignore[misc]
                                              of, partial, len(longest)))
    return out


def _stream(runs: list[Run], partial: bool, length: int) -> dict[str, Any]:
    errors = np.full((len(runs), length), np.nan)
    collapsed = np.zeros(length, int)
    for i, run in enumerate(runs):
        errors[i, :len(run.stream)] = run.stream.errors
        collapsed[:len(run.stream)] += [int(e.collapsed) for e in run.stream.entries]
    visits = sorted({v for r in runs for v in r.stream.visit_errors()})
    per_visit = [[r.stream.visit_errors().get(v, np.nan) for v in visits] for r in runs]

    def metric(name: str) -> list[list[float | None]]:
        return _bands([[np.nan if (v := r.metrics.get(name)) is None else v] for r in runs])

    return {"n": len(runs), "partial": partial, "error": _bands(errors), "collapsed": collapsed.tolist(),
            "visits": visits, "visit_error": _bands(per_visit), "before": metric("source_error_before"),
            "after": metric("source_error_after"), "source_forgetting": metric("source_forgetting")}

"""Records as tidy tables for other programs: one line per run, per test, per point of a curve."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..numbers.metrics import all_metrics
from ..numbers.statistics import compare_pair
from ..records.results import RunList, write_atomically
from .comparison import Comparison, value_of
from .images import BY_IMAGE, evidence
from .sheets import inert
from .sweeps import told_apart

__all__ = ["TIDY", "chosen", "curves_csv", "runs_csv", "tests_csv", "with_columns", "write_tidy"]


def _csv(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for line in lines:
        writer.writerow(["" if isinstance(v, float) and not math.isfinite(v) else inert(v) for v in line])
    return out.getvalue()


def runs_csv(comparison: Comparison) -> str:
    """One line per run, finished or not: what it is, and every metric in its unit, unrounded."""
    known = all_metrics()
    head = ["scenario", "backbone", "protocol", "method", "family", "reference", "seed", "order", "status", "id",
            *(f"{name}_{metric.unit.replace('%', 'percent').replace(' ', '_')}" for name, metric in known.items())]
    lines = []
    for group in comparison.groups:
        bounds = {row.method: row.reference for row in group.rows}
        for run in group.runs:
            family = str(run.record["method"].get("family") or "")
            lines.append([run.scenario, run.backbone, run.fingerprint, run.method, family, bounds.get(run.method, ""), run.seed,
                          "" if run.order is None else run.order, run.status, run.id,
                          *(value_of(run, name) for name in known)])
    return _csv(head, lines)


def tests_csv(comparison: Comparison) -> str:
    """One line per pair of methods and metric: over runs, and over images where the records have them. p not corrected."""
    head = ["scenario", "protocol", "metric", "a", "b", "pairs", "difference", "low", "high", "p_sign_flip", "p_wilcoxon",
            "smallest_p", "cliffs_delta", "images", "given_low", "given_high", "p_given", "new_low", "new_high", "p_new",
            "p_above"]
    lines: list[list[Any]] = []
    for group in comparison.groups:
        for name in [*group.metrics, *group.variants]:
            rows = [r for r in group.rows if r.cells[name].n]
            if all_metrics()[name].family == "cost":
                continue
            for a, b in combinations(rows, 2):
                t = compare_pair(a.values[name], b.values[name])
                found = evidence(a, b, name) if name in BY_IMAGE else None
                e = found.test if found is not None else None
                d = t.difference
                lines.append([group.scenario, group.fingerprint, name, a.method, b.method, t.n, d.mean, d.low, d.high,
                              t.p_sign_flip, t.p_wilcoxon, t.smallest_p, t.delta,
                              *([e.images, *e.given, e.p_given, *e.new, e.p_new, e.above] if e is not None else [""] * 8)])
    return _csv(head, lines)


def curves_csv(comparison: Comparison) -> str:
    """One line per finished run and cell of its accuracy matrix or domain of its stream, with the counts."""
    head = ["scenario", "protocol", "method", "seed", "order", "kind", "row", "after", "on", "visit", "correct", "total"]
    lines: list[list[Any]] = []
    for group in comparison.groups:
        for row in group.rows:
            for (seed, order), run in sorted(row.runs.items(), key=repr):
                who = [group.scenario, group.fingerprint, row.method, seed, "" if order is None else order]
                m = run.matrix
                lines += [[*who, "matrix", i, m.rows[i], m.columns[j], "", int(m.correct[i, j]), int(m.total[i, j])]
                          for i in range(len(m.rows)) for j in range(len(m.columns)) if m.total[i, j]]
                lines += [[*who, "stream", k, "", e.domain, e.visit, e.correct, e.total]
                          for k, e in enumerate(run.stream.entries)]
    return _csv(head, lines)


TIDY = {"runs": runs_csv, "tests": tests_csv, "curves": curves_csv}


def chosen(runs: RunList, methods: Sequence[str]) -> RunList:
    """The runs of the methods named (labels, or names without arguments); all where none is. Raises UserError for one that
    no run is of."""
    if not methods:
        return runs
    problems, told = runs.problems, {run.id: run.method for run in runs}
    runs = RunList(told_apart(runs), problems)  # by the names that tables give them
    known = set(told.values()) | {run.method for run in runs} | {str(run.record["method"]["name"]) for run in runs}
    if unknown := [m for m in methods if m not in known]:
        raise UserError(f"no run is of {unknown[0]}; there are {', '.join(sorted({run.method for run in runs}))}.")
    return RunList((r for r in runs if {r.method, told[r.id], r.record["method"]["name"]} & set(methods)), problems)


def with_columns(comparison: Comparison, columns: Sequence[str]) -> Comparison:
    """The comparison with these metrics as columns, where they were measured; unchanged for none. Raises UserError for a
    metric that there is not."""
    known = all_metrics()
    if wrong := [name for name in columns if name not in known]:
        raise UserError(f"there is no metric {wrong[0]!r}; there are {', '.join(known)}.")
    for group in comparison.groups if columns else ():
        group.metrics = [n for n in columns if any(row.cells[n].n for row in group.rows)] or [group.primary]
    return comparison


def write_tidy(comparison: Comparison, kind: str, path: Path) -> Path:
    """Write one of :data:`TIDY` as CSV. Raises UserError for a place that cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, TIDY[kind](comparison).encode())
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error.strerror}): choose another place.") from error
    return path

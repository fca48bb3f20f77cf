"""Methods over scenarios: the table of most papers, ranks, and rliable's aggregates of the runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from ..numbers.metrics import all_metrics
from ..numbers.statistics import RankTest, friedman
from ..numbers.statistics.aggregate import Aggregate, aggregate
from .comparison import Comparison, Group
from .memo import kept
from .tables import AILING, REFERENCE, cell_text

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Overall", "Ranking", "aggregates", "overall", "print_overall", "rankable", "ranking"]


@dataclass(frozen=True)
class Overall:
    """Methods x scenarios by one metric. ``scenarios``: group's key -> (scenario, what else names it); ``cells``: method ->
    group's key -> text; ``ranks``: mean ranks of the methods that all ranked scenarios have."""

    metric: str
    title: str
    scenarios: dict[str, tuple[str, str]]
    methods: list[str]
    cells: dict[str, dict[str, str]]
    ranks: dict[str, float]
    notes: list[str]


@dataclass(frozen=True)
class Ranking:
    """Friedman's test over the tables that share methods; ``test`` is None where there is too little to rank."""

    groups: list[Group]
    methods: list[str]
    left_out: list[str]
    test: RankTest | None = field(default=None)


def _measured(group: Group, metric: str) -> list[str]:
    return [row.method for row in group.rows if row.cells[metric].n and not row.reference]


def rankable(tables: Sequence[Group], metric: str) -> tuple[list[Group], list[str]]:
    """The tables that can be ranked together and the competitors that all of them have: one table per scenario and
    backbone (two protocols of one scenario are not two scenarios: the one with more methods stays), those with two
    measured methods or more, and while these share fewer than two, the one that shares the fewest with others is left out."""
    measured = {g.title: _measured(g, metric) for g in tables}
    widest: dict[tuple[str, str], Group] = {}
    for g in tables:
        other = widest.setdefault((g.scenario, g.backbone), g)
        if len(measured[g.title]) > len(measured[other.title]):
            widest[g.scenario, g.backbone] = g
    left = [g for g in widest.values() if len(measured[g.title]) > 1]
    while True:
        shared = [m for m in (measured[left[0].title] if left else []) if all(m in measured[g.title] for g in left)]
        if len(shared) > 1 or len(left) < 2:
            return left, shared
        left.remove(min(left, key=lambda g: (sum(len({*measured[g.title]} & {*measured[o.title]}) for o in left if o is not g),
                                             len(measured[g.title]))))


def ranking(every: Sequence[Group], metric: str) -> Ranking:
    """Ranks over the tables whose leading metric is ``metric``."""
    tables, shared = rankable(every, metric)
    others = sorted({m for g in tables for m in _measured(g, metric)} - set(shared))
    gone = [*(g.title for g in every if g not in tables), *(f"{m} (not on all scenarios)" for m in others if len(tables) > 1)]
    if len(tables) < 2 or len(shared) < 2:
        return Ranking(tables, shared, gone)
    means = [[next(r for r in g.rows if r.method == m).cells[metric].mean for m in shared] for g in tables]
    return Ranking(tables, shared, gone, friedman(means, bool(all_metrics()[metric].higher)))


def overall(comparison: Comparison, columns: Sequence[str] = ()) -> list[Overall]:
    """One table per metric (``columns``; by default those that lead a table) which two scenarios or more share a method in."""
    known, out = all_metrics(), []
    for metric in columns or dict.fromkeys(g.primary for g in comparison.groups):
        if metric not in known:
            raise UserError(f"there is no metric {metric!r}; there are {', '.join(known)}.")
        tables = [g for g in comparison.groups if (metric == g.primary or columns) and any(r.cells[metric].n for r in g.rows)]
        rows = {g.title: {r.method: r for r in g.rows if r.cells[metric].n} for g in tables}
        if len(tables) < 2 or len({m for of in rows.values() for m in of}) == sum(len(of) for of in rows.values()):
            continue
        ranked = ranking(tables, metric)
        ranks = dict(zip(ranked.methods, map(float, ranked.test.ranks), strict=True)) if ranked.test is not None else {}
        methods = sorted(dict.fromkeys(m for of in rows.values() for m in of), key=lambda m: (ranks.get(m, np.inf), m))
        bounds = {r.method for of in rows.values() for r in of.values() if r.reference}
        cells: dict[str, dict[str, str]] = {}
        for method in methods:
            cells[method] = {}
            for g in tables:
                row = rows[g.title].get(method)
                cells[method][f"{g.title}#{g.fingerprint}"] = "–" if row is None else cell_text(row, metric) + (
                    AILING if row.flags else "")
        m = known[metric]
        head = f"{m.label[0].upper()}{m.label[1:]} ({m.unit}{' ' + m.arrow if m.arrow else ''}) on all scenarios"
        notes = ["Mean ± half of the 95 % t-interval over runs (seed × class order)."]
        if bounds:
            notes.append(f"{REFERENCE} bounds, no competitors: {', '.join(sorted(bounds))}.")
        if any(r.flags for of in rows.values() for r in of.values()):
            notes.append(f"{AILING} something ails its runs: see the table of the scenario.")
        notes += [f"Left out of the ranks: {'; '.join(ranked.left_out)}."] if ranks and ranked.left_out else []
        notes.append("Protocols: " + ", ".join(f"{g.scenario} {g.fingerprint}" for g in tables) + ".")
        out.append(Overall(metric, head, {f"{g.title}#{g.fingerprint}": (g.scenario, " · ".join(
            part for part in (g.backbone, g.apart) if part)) for g in tables}, methods, cells, ranks, notes))
    return out


def aggregates(ranked: Ranking, metric: str) -> Aggregate | None:
    """rliable's aggregates over the ranked scenarios, of percentages that a perfect method brings to 100; None for other
    metrics and where there is nothing to rank."""
    m = all_metrics()[metric]
    if ranked.test is None or m.unit != "%" or m.higher is None:
        return None
    runs = [run for g in ranked.groups for row in g.rows if row.method in ranked.methods for run in row.runs.values()]

    def make() -> Aggregate:
        scores = []
        for method in ranked.methods:
            rows = [next(r for r in g.rows if r.method == method) for g in ranked.groups]
            values = [[v for v in row.values[metric].values() if np.isfinite(v)] for row in rows]
            scores.append([np.asarray(v) if m.higher else 100 - np.asarray(v) for v in values])
        return aggregate(scores)

    return kept(runs, ("aggregate", metric, tuple(ranked.methods), tuple(g.title for g in ranked.groups)), make)


def print_overall(comparison: Comparison, columns: Sequence[str] = (), console: Console | None = None) -> bool:
    """The tables over scenarios on the terminal; False where no two scenarios share a metric and a method."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from .terminal import terminal, trimmed

    made = overall(comparison, columns)
    console = console if console is not None else terminal(Console())
    for one in made:
        table = Table(title=escape(one.title), title_justify="left", title_style="bold", header_style="bold", box=None,
                      pad_edge=False, padding=(0, 1))
        table.add_column("method", overflow="fold")
        for scenario, more in one.scenarios.values():
            table.add_column("\n".join([scenario, *more.split(" · ")]), justify="right", overflow="fold")
        if one.ranks:
            table.add_column("mean\nrank", justify="right")
        for method in one.methods:
            rank = [f"{one.ranks[method]:.2f}" if method in one.ranks else "–"] if one.ranks else []
            table.add_row(escape(method), *(one.cells[method][key] for key in one.scenarios), *rank)
        trimmed(console, table)
        for note in one.notes:
            console.print(f"  {note}", style="dim", highlight=False, markup=False)
        console.print()
    return bool(made)

"""Runs to tables: which runs may stand together, their means with intervals, and who is best beyond doubt.

One table per scenario and backbone. Runs whose protocol fingerprints differ (other weights, split, order, batch size,
reset policy ...) are refused in one table: the error names each field that differs and its values. Within a table a
row is a method (with its changed arguments); its spread is over (seed, class order), and methods are tested on the
pairs that both have. Only finished runs count in a mean; unfinished and failed ones are counted beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from ..numbers.metrics import KINDS, all_metrics
from ..numbers.statistics import Interval, indistinguishable_from_best, pair, smallest_p, t_interval
from ..records.results import Run

__all__ = ["Comparison", "Group", "Row", "compare", "differing_fields", "value_of"]

ALPHA = 0.05
Key = tuple[int, int | None]


def value_of(run: Run, name: str) -> float:
    """A metric or cost of a run in the unit of its :class:`~cl_bench.numbers.metrics.Metric`; NaN where it was not
    measured."""
    return all_metrics()[name].read(run.metrics, run.record)


@dataclass
class Row:
    """One method in a table. ``runs``: the finished runs that count, by (seed, order); ``values``: metric -> key ->
    value; ``cells``: metric -> mean with 95 % t-interval. ``p_best``: Holm-adjusted p against the best (None: it is
    the best, or was not measured); ``decidable``: whether the number of pairs could give p <= 0.05 at all."""

    method: str
    family: str
    runs: dict[Key, Run]
    values: dict[str, dict[Key, float]]
    cells: dict[str, Interval]
    unfinished: int = 0
    failed: int = 0
    best: bool = False
    p_best: float | None = None
    decidable: bool = False

    @property
    def n(self) -> int:
        """Finished runs."""
        return len(self.runs)

    @property
    def standing(self) -> str:
        """``best``; ``tied``: not distinguishable from the best; ``undecided``: too few pairs for the test to tell;
        ``behind``: distinguishable; empty where not measured."""
        if self.best or self.p_best is None:
            return "best" if self.best else ""
        return "behind" if self.p_best <= ALPHA else "tied" if self.decidable else "undecided"


@dataclass
class Group:
    """One table: a scenario on a backbone under one protocol. ``metrics``: the columns; ``primary`` ranks the rows."""

    scenario: str
    backbone: str
    kind: str
    fingerprint: str
    rows: list[Row]
    metrics: list[str]
    primary: str
    notes: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"{self.scenario} · {self.backbone}" if self.backbone else self.scenario


@dataclass
class Comparison:
    """All tables of a set of runs; ``problems``: runs that could not be read, one sentence each."""

    groups: list[Group]
    problems: list[str] = field(default_factory=list)


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def differing_fields(runs: Sequence[Run]) -> dict[str, dict[str, list[str]]]:
    """Fingerprint fields that are not the same in all runs: field -> value (as text) -> ids of the runs."""
    all_fields = [run.record["fingerprint"].get("fields") or {} for run in runs]
    out: dict[str, dict[str, list[str]]] = {}
    for name in sorted({name for fields in all_fields for name in fields}):
        values: dict[str, list[str]] = {}
        for run, fields in zip(runs, all_fields, strict=True):
            values.setdefault(_short(fields.get(name, "not recorded")), []).append(run.id)
        if len(values) > 1:
            out[name] = values
    return out


def _say(differences: dict[str, dict[str, list[str]]]) -> str:
    if not differences:
        return "their fingerprints differ although no recorded field does"
    return "; ".join(f"'{name}' is " + " and ".join(f"{value} in {ids[0]}" + (f" (and {len(ids) - 1} more)"
                     if len(ids) > 1 else "") for value, ids in values.items()) for name, values in differences.items())


def _notes(runs: Sequence[Run]) -> list[str]:
    """What a reader must know of a table: mixed protocols, mixed code, uncommitted changes."""
    notes = []
    if len({r.fingerprint for r in runs}) > 1:
        notes.append(f"Mixed protocols: {_say(differing_fields(runs))}.")
    git = [(r.record.get("environment") or {}).get("git") or {} for r in runs]
    commits = sorted({str(g.get("commit"))[:10] for g in git if g.get("commit")})
    if len(commits) > 1:
        notes.append(f"Mixed code versions: {', '.join(commits)}.")
    if any(g.get("dirty") for g in git):
        notes.append("Some runs were made with uncommitted changes.")
    return notes


def _latest(runs: Iterable[Run]) -> tuple[dict[Key, Run], int]:
    """Per (seed, order) the newest finished run, and how many older repeats were left out."""
    chosen: dict[Key, Run] = {}
    repeats = 0
    for run in sorted(runs, key=lambda r: (str(r.record.get("started") or ""), r.id)):
        repeats += (run.seed, run.order) in chosen
        chosen[run.seed, run.order] = run
    return chosen, repeats


def _row(method: str, runs: Sequence[Run], names: Sequence[str]) -> tuple[Row, int]:
    chosen, repeats = _latest(r for r in runs if r.status == "finished")
    values = {name: {key: value_of(run, name) for key, run in chosen.items()} for name in names}
    row = Row(method, str(runs[0].record["method"].get("family") or ""), chosen, values,
              {name: t_interval(list(v.values())) for name, v in values.items()},
              unfinished=sum(r.status in ("running", "stopped") for r in runs),
              failed=sum(r.status == "failed" for r in runs))
    return row, repeats


def _group(runs: Sequence[Run]) -> Group:
    kinds = {r.kind for r in runs}
    kind = kinds.pop() if len(kinds) == 1 and kinds <= set(KINDS) else "deployed"
    known = all_metrics()
    names = [name for name, metric in known.items() if kind in metric.shown]
    methods: dict[str, list[Run]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    built = {method: _row(method, members, list(known)) for method, members in methods.items()}
    rows = [row for row, _ in built.values()]
    notes = _notes(runs)
    if repeats := sum(r for _, r in built.values()):
        notes.append(f"{repeats} repeated run{'s' if repeats > 1 else ''} left out: the newest of each method, seed "
                     f"and order counts.")
    measured = [n for n in names if any(row.cells[n].n for row in rows)]
    ranking = [n for n in names if known[n].ranks]
    primary = next((n for n in ranking if n in measured), ranking[0])
    metrics = [n for n in names if n in measured or n == primary]  # where nothing was measured, that shows
    higher = bool(known[primary].higher)
    best, p_values = indistinguishable_from_best({row.method: row.values[primary] for row in rows}, higher, ALPHA)
    for row in rows:
        row.best, row.p_best = row.method == best, p_values.get(row.method)
    if p_values and best is not None:
        reference = built[best][0].values[primary]
        pairs = {row.method: pair(row.values[primary], reference)[0].size for row in rows if row.method in p_values}
        for row in rows:
            # Holm multiplies the smallest p of all by the number of tests.
            row.decidable = smallest_p(pairs.get(row.method, 0)) * len(p_values) <= ALPHA
        most = max(pairs.values())
        if smallest_p(most) * len(p_values) > ALPHA:
            corrected = (f", or {min(1, smallest_p(most) * len(p_values)):.2g} after Holm's correction for "
                         f"{len(p_values)} tests" if len(p_values) > 1 else "")
            notes.append(f"Too few runs to separate methods: with {most} pair{'s' if most != 1 else ''} the smallest "
                         f"possible p is {smallest_p(most):.2g}{corrected}.")
    rows.sort(key=lambda r: (math.isnan(m := r.cells[primary].mean), -m if higher else m, r.method))
    first = runs[0]
    return Group(first.scenario, first.backbone, kind, "+".join(sorted({r.fingerprint for r in runs})), rows, metrics,
                 primary, notes, list(runs))


def compare(runs: Iterable[Run], by: str = "scenario", mix: bool = False) -> Comparison:
    """Tables of runs, one per scenario and backbone.

    by: ``"scenario"`` refuses runs of one scenario and backbone whose fingerprints differ; ``"fingerprint"`` gives each
    protocol its own table instead. mix: put them into one table all the same; its notes then say what differs.

    Raises UserError for no runs, an unknown ``by``, and for fingerprints that differ (naming fields and values).
    """
    problems = list(getattr(runs, "problems", []))
    members = list(runs)
    if by not in ("scenario", "fingerprint"):
        raise UserError(f"Runs are compared by 'scenario' or 'fingerprint', not {by!r}.")
    if not members:
        raise UserError("There is no run to compare: run something first, for example cl-bench suite quickstart.")
    tables: dict[tuple[str, ...], list[Run]] = {}
    for run in members:
        key = (run.scenario, run.backbone) + ((run.fingerprint,) if by == "fingerprint" else ())
        tables.setdefault(key, []).append(run)
    for key, group in tables.items():
        if len({r.fingerprint for r in group}) > 1 and not mix:
            raise UserError(f"Runs of {key[0]} on {key[1] or 'one backbone'} were made under different protocols and "
                            f"cannot stand in one table: {_say(differing_fields(group))}. Compare them apart "
                            f"with --by fingerprint, or mix them knowingly with --mix.")
    return Comparison([_group(tables[key]) for key in sorted(tables)], problems)

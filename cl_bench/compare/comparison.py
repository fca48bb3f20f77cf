"""Runs to tables: which runs may stand together, their means with intervals, and who is best beyond doubt.

One table per scenario and backbone. Runs whose protocol fingerprints differ (other weights, split, order, batch size,
reset policy ...) are refused in one table: the error names each field that differs and its values. Within a table a
row is a method (with its changed arguments); its spread is over (seed, class order), and methods are tested on the
pairs that both have. Only finished runs count in a mean; unfinished and failed ones are counted beside it. Upper and
lower bounds stand in the table as references and are no competitors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from ..numbers.metrics import KINDS, all_metrics
from ..numbers.statistics import Interval, indistinguishable_from_best, pair, smallest_p, t_interval
from ..records.results import Run
from ..registry import GROUPS, entries
from .health import Flag, flags_of, mixed_hosts, overlapping, unlearned
from .memo import kept
from .sweeps import arguments_of, given_label, told_apart

__all__ = ["Comparison", "Group", "Row", "Standing", "compare", "differing_fields", "reference_of", "value_of", "values_of"]

ALPHA = 0.05
Key = tuple[int, int | None]


def value_of(run: Run, name: str) -> float:
    """A metric or cost of a run in the unit of its :class:`~cl_bench.numbers.metrics.Metric`; NaN where it was not
    measured, and where a run that learned nothing would look as if it forgot nothing."""
    metric = all_metrics()[name]
    return math.nan if "learned" in metric.needs and unlearned(run) else metric.read(run.metrics, run.record)


def values_of(run: Run) -> dict[str, float]:
    """Every metric of a run by name, as :func:`value_of` gives it."""
    def make() -> dict[str, float]:
        metrics, record, nothing = run.metrics, run.record, unlearned(run)
        return {name: math.nan if nothing and "learned" in metric.needs else metric.read(metrics, record)
                for name, metric in all_metrics().items()}

    return kept([run], "values", make)


def reference_of(run: Run) -> str:
    """What a run's method is a reference for (``upper bound``, ...), empty for a competitor. Records that do not say it
    yet are asked for in the registry, by name and without importing the method."""
    method = run.record["method"]
    if "reference" in method:
        return str(method["reference"] or "")
    entry = entries(GROUPS["methods"]).get(str(method["name"]))
    return str(entry.facts.get("reference", "")) if entry is not None else ""


@dataclass(frozen=True)
class Standing:
    """A method's place by one metric. ``p``: Holm-adjusted p against the best (None: it is the best, or does not compete,
    or was not measured); ``decidable``: whether the number of pairs could give p <= 0.05 at all."""

    best: bool = False
    p: float | None = None
    decidable: bool = False

    @property
    def word(self) -> str:
        """``best``; ``tied``: not distinguishable from the best; ``undecided``: too few pairs for the test to tell;
        ``behind``: distinguishable; empty where not measured."""
        if self.best or self.p is None:
            return "best" if self.best else ""
        return "behind" if self.p <= ALPHA else "tied" if self.decidable else "undecided"


@dataclass
class Row:
    """One method in a table. ``runs``: the finished runs that count, by (seed, order); ``values``: metric -> key ->
    value; ``cells``: metric -> mean with 95 % t-interval; ``standings``: its place by each metric that has a direction;
    ``reference``: what it is a bound of, empty for a competitor; ``flags``: what ails its runs."""

    method: str
    family: str
    runs: dict[Key, Run]
    values: dict[str, dict[Key, float]]
    cells: dict[str, Interval]
    primary: str = ""
    unfinished: int = 0
    failed: int = 0
    reference: str = ""
    flags: list[Flag] = field(default_factory=list)
    standings: dict[str, Standing] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Finished runs."""
        return len(self.runs)

    @property
    def standing(self) -> str:
        """Its place by the metric that ranks the table."""
        return self.standings.get(self.primary, Standing()).word

    @property
    def best(self) -> bool:
        return self.standing == "best"


@dataclass
class Group:
    """One table: a scenario on a backbone under one protocol.

    ``metrics``: the columns; ``variants``: other definitions of forgetting; ``costs``: every measured cost; ``primary``
    ranks the rows; ``apart``: how its protocol differs from other tables of the scenario; ``times``: why times of its runs
    cannot be compared, by the kind of time (``wall``, ``busy``).
    """

    scenario: str
    backbone: str
    kind: str
    fingerprint: str
    rows: list[Row]
    metrics: list[str]
    primary: str
    notes: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    variants: list[str] = field(default_factory=list)
    costs: list[str] = field(default_factory=list)
    apart: str = ""
    times: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Scenario, backbone and, beside tables of other protocols, what differs: no two tables share it."""
        return " · ".join(part for part in (self.scenario, self.backbone, self.apart) if part)

    @property
    def warnings(self) -> list[str]:
        """One sentence per ailing method and kind of trouble."""
        return [f"{row.method}: {flag.sentence}." for row in self.rows for flag in row.flags]


@dataclass
class Comparison:
    """All tables of a set of runs; ``problems``: runs that could not be read, one sentence each."""

    groups: list[Group]
    problems: list[str] = field(default_factory=list)


def _short(value: Any, length: int = 60) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= length else text[:length - 3] + "..."


def _fields(run: Run) -> dict[str, Any]:
    return run.record["fingerprint"].get("fields") or {}


def _said(fields: Mapping[str, Any], name: str, length: int = 60) -> str:
    if name in fields:
        return _short(fields[name], length)
    return "as by default" if name.startswith("compute.") else "not recorded"  # what is computed otherwise stands there alone


def differing_fields(runs: Sequence[Run]) -> dict[str, dict[str, list[str]]]:
    """Fingerprint fields that are not the same in all runs: field -> value (as text) -> ids of the runs."""
    all_fields = [_fields(run) for run in runs]
    out: dict[str, dict[str, list[str]]] = {}
    for name in sorted({name for fields in all_fields for name in fields}):
        values: dict[str, list[str]] = {}
        for run, fields in zip(runs, all_fields, strict=True):
            values.setdefault(_said(fields, name), []).append(run.id)
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
    searched: dict[str, set[str]] = {}  # once over the runs: a table may have thousands of rows
    for run in runs:
        if isinstance(t := run.record.get("tuning"), Mapping):
            searched.setdefault(run.method, set()).add(json.dumps([t.get("tried"), t.get("objective"), t.get("on")]))
    for method, found in searched.items():
        for tried, objective, on in map(json.loads, sorted(found)):
            notes.append(f"{method} was chosen among {tried} configurations tried, by {objective} on {on}.")
    if len({r.fingerprint for r in runs}) > 1:
        notes.append(f"Mixed protocols: {_say(differing_fields(runs))}.")
    git = [(r.record.get("environment") or {}).get("git") or {} for r in runs]
    commits = sorted({str(g.get("commit"))[:10] for g in git if g.get("commit")})
    if len(commits) > 1:
        notes.append(f"Mixed code versions: {', '.join(commits)}.")
    if any(g.get("dirty") for g in git):
        notes.append("Some runs were made with uncommitted changes.")
    given: dict[str, set[str]] = {}
    for run in runs:
        if label := given_label(run):
            given.setdefault(label, set()).add(repr((run.record["method"]["name"], arguments_of(run))))
    notes += [f"Mixed settings: the label {label!r} was given to {len(settings)} different settings."
              for label, settings in sorted(given.items()) if len(settings) > 1]
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
    told = {key: values_of(run) for key, run in chosen.items()}
    values = {name: {key: found[name] for key, found in told.items()} for name in names}
    row = Row(method, str(runs[0].record["method"].get("family") or ""), chosen, values,
              kept(list(chosen.values()), "cells", lambda: {name: t_interval(list(v.values())) for name, v in values.items()}),
              unfinished=sum(r.status in ("running", "stopped") for r in runs),
              failed=sum(r.status == "failed" for r in runs), reference=reference_of(runs[0]),
              flags=kept(list(chosen.values()), "flags", lambda: flags_of(list(chosen.values()))))
    return row, repeats


def _stand(rows: Sequence[Row], name: str, higher: bool) -> tuple[int, int]:
    """Give every competitor its place by one metric; the most pairs that a test had, and the number of tests."""
    competitors = {row.method: row.values[name] for row in rows if not row.reference}
    best, p_values = indistinguishable_from_best(competitors, higher, ALPHA)
    pairs = {m: pair(competitors[m], competitors[best])[0].size for m in p_values} if best is not None else {}
    for row in rows:
        # Holm multiplies the smallest p of all by the number of tests.
        decidable = smallest_p(pairs.get(row.method, 0)) * len(p_values) <= ALPHA
        row.standings[name] = Standing(row.method == best, p_values.get(row.method), decidable)
    return max(pairs.values(), default=0), len(p_values)


def _too_few(most: int, tests: int) -> list[str]:
    if not tests or smallest_p(most) * tests <= ALPHA:
        return []
    corrected = (f", or {min(1, smallest_p(most) * tests):.2g} after Holm's correction for {tests} tests" if tests > 1 else "")
    return [f"Too few runs to separate methods by runs alone: with {most} pair{'s' if most != 1 else ''} the smallest "
            f"possible p is {smallest_p(most):.2g}{corrected}."]


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
    ranking = [n for n in names if known[n].ranks]
    measured = {n for n in known if any(row.cells[n].n for row in rows)}
    primary = next((n for n in ranking if n in measured), ranking[0])
    metrics = [n for n in names if n in measured or n == primary]  # where nothing was measured, that shows
    if "busy" not in measured and "seconds" in measured:  # older records have wall time alone
        metrics.insert(metrics.index("passes") + 1 if "passes" in metrics else len(metrics), "seconds")
    variants = [n for n in known if known[n].family == "forgetting" and n in measured and n not in metrics]
    for name in [*metrics, *variants]:
        if (higher := known[name].higher) is not None:
            most, tests = _stand(rows, name, higher)
            notes += _too_few(most, tests) if name == primary else []
    better = bool(known[primary].higher)
    for row in rows:
        row.primary = primary
    rows.sort(key=lambda r: (math.isnan(m := r.cells[primary].mean), -m if better else m, r.method))
    first = runs[0]
    made = Group(first.scenario, first.backbone, kind, "+".join(sorted({r.fingerprint for r in runs})), rows, metrics,
                 primary, notes, list(runs), variants, [n for n in known if known[n].family == "cost" and n in measured],
                 times=_times([run for row in rows for run in row.runs.values()]))
    made.notes += [sentence for sentence in dict.fromkeys(made.times.values())]
    return made


def _times(runs: Sequence[Run]) -> dict[str, str]:
    """Why wall or busy times of the runs cannot be compared."""
    if hosts := mixed_hosts(runs):
        sentence = f"Mixed machines, so times cannot be compared: {'; '.join(hosts)}."
        return {"wall": sentence, "busy": sentence}
    if n := overlapping(runs):
        return {"wall": f"{n} runs went on at the same time as others: wall times say what the machine was shared with, "
                        "not what a method costs."}
    return {}


def _tell_apart(groups: Sequence[Group]) -> None:
    """Tables of one scenario and backbone say how their protocols differ."""
    same: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        same.setdefault((group.scenario, group.backbone), []).append(group)
    for members in same.values():
        if len(members) < 2:
            continue
        fields = differing_fields([group.runs[0] for group in members])
        for group in members:
            own = _fields(group.runs[0])
            said = [f"{name.removeprefix('scenario.')} {_said(own, name, 28)}" for name in fields]
            more = [f"and {len(said) - 2} more"] if len(said) > 3 else []
            group.apart = ", ".join(said[:2] + more if more else said) or f"protocol {group.fingerprint}"
        told = [group.apart for group in members]
        for group in members:
            if told.count(group.apart) > 1:
                group.apart += f", protocol {group.fingerprint}"


def compare(runs: Iterable[Run], by: str = "scenario", mix: bool = False) -> Comparison:
    """Tables of runs, one per scenario and backbone.

    by: ``"scenario"`` refuses runs of one scenario and backbone whose fingerprints differ; ``"fingerprint"`` gives each
    protocol its own table instead. mix: put them into one table all the same; its notes then say what differs.

    Raises UserError for no runs, an unknown ``by``, and for fingerprints that differ (naming fields and values).
    """
    problems = list(getattr(runs, "problems", []))
    members = told_apart(list(runs))
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
    groups = [_group(tables[key]) for key in sorted(tables)]
    _tell_apart(groups)
    return Comparison(groups, problems)

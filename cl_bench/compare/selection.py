"""Label-free model selection among the runs of a table: what each scorer chooses, and its gap to the oracle.

The candidates are the settings of one method, and all methods together. Scores come from what the runs recorded
without labels (:mod:`cl_bench.label_free.sums`): each domain is a target of its own, a run's score is the mean over domains
(as its mean error is), a candidate's the mean over its runs. A candidate whose predictions lack diversity beside the
source model's in any domain is refused. Labels enter only the last column: how many points the choice falls short of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import UserError
from ..label_free.scorers import LABELS, SCORERS, Selection, choose, is_diverse
from .comparison import Comparison, Group, Row

__all__ = ["Choice", "choices", "print_choices"]


@dataclass(frozen=True)
class Choice:
    """One scorer's choice on one table. ``among``: the method whose settings were candidates, or ``all methods``;
    ``gated``: whether runs of the source model were there to refuse collapsed candidates by."""

    title: str
    among: str
    candidates: int
    gated: bool
    selection: Selection


def _recorded(row: Row) -> bool:
    """Whether every run says something without labels (records of older versions do not)."""
    return row.n > 0 and all(any(e.unlabelled for e in run.stream.entries) for run in row.runs.values())


def _score(row: Row, scorer: str) -> float:
    """Mean over runs of the mean over domains; NaN, which is never chosen, where a domain had no finite answer."""
    per_run = [[SCORERS[scorer](e.unlabelled) if e.unlabelled else math.nan for e in run.stream.entries]
               for run in row.runs.values()]
    return sum(sum(values) / len(values) for values in per_run) / len(per_run)


def _diverse(row: Row, source: Row) -> bool:
    """Whether H(mean p) reaches the share of the source model's in every domain, on each pair of runs of one seed and
    order (or on the first source run, where the seed is not there)."""
    first = next(iter(source.runs.values()))
    for key, run in row.runs.items():
        beside = source.runs.get(key, first).stream.entries
        for own, other in zip(run.stream.entries, beside, strict=False):
            if own.unlabelled and other.unlabelled and not is_diverse(own.unlabelled, other.unlabelled):
                return False
    return True


def choices(group: Group, source: str = "source") -> list[Choice]:
    """What every scorer chooses on one table of test-time runs; nothing where fewer than two candidates recorded what
    scorers need. ``source``: the label of the model that does not adapt."""
    rows = {row.method: row for row in group.rows if _recorded(row)}
    if len(rows) < 2:
        return []
    names = {run.method: str(run.record["method"]["name"]) for run in group.runs}
    sets = {name: [m for m in rows if names[m] == name] for name in dict.fromkeys(names[m] for m in rows)}
    sets = {**{name: members for name, members in sets.items() if len(members) > 1}, "all methods": list(rows)}
    refused = tuple(m for m, row in rows.items() if source in rows and not _diverse(row, rows[source]))
    accuracies = {m: 100 - row.cells["mean_error"].mean for m, row in rows.items()}
    out = []
    for among, members in sets.items():
        for scorer in SCORERS:
            chosen = choose(scorer, {m: _score(rows[m], scorer) for m in members},
                            {m: accuracies[m] for m in members}, tuple(m for m in members if m in refused))
            out.append(Choice(group.title, among, len(members), source in rows, chosen))
    return out


def print_choices(comparison: Comparison, source: str = "source") -> None:
    """One table on the terminal per scenario; raises UserError where no run has what it takes."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from .terminal import terminal, trimmed

    console = terminal(Console())
    found = [made for group in comparison.groups if (made := choices(group, source))]
    if not found:
        raise UserError("label-free selection needs two finished test-time runs with different settings or methods, made "
                        "by a cl-bench that records what scorers need: run the suite again.")
    for made in found:
        table = Table(title=escape(made[0].title), title_justify="left", title_style="bold", header_style="bold", box=None,
                      pad_edge=False, padding=(0, 1))
        for head, side in (("among", "left"), ("scorer", "left"), ("chooses", "left"), ("error\n%", "right"),
                           ("oracle", "left"), ("error\n%", "right"), ("gap\npoints", "right"), ("rank\ncorr.", "right")):
            table.add_column(head, justify=side, overflow="fold", no_wrap=side == "right",  # type: ignore[arg-type]
                             min_width=12 if head == "scorer" else None)
        for k, choice in enumerate(made):
            s, again = choice.selection, k > 0 and made[k - 1].among == choice.among
            numbers = [_text(100 - s.chosen_accuracy), escape(str(s.oracle)), _text(100 - s.oracle_accuracy), _text(s.gap),
                       _text(s.spearman)]
            among = "" if again and console.is_terminal else f"{escape(choice.among)} ({choice.candidates})"
            table.add_row(among, LABELS[s.scorer],
                          escape(s.chosen or "none: keep the source"), *numbers)
        trimmed(console, table)
        refused = sorted({m for choice in made for m in choice.selection.refused})
        notes = [f"Refused as collapsed: {', '.join(refused)}."] if refused else []
        if not made[0].gated:
            notes.append(f"No run of the source model ({source}) is here: collapsed candidates were not refused.")
        for note in notes:
            console.print(f"  {escape(note)}", style="dim", highlight=False)
        console.print()
    console.print("Scores see no label. The gap is what the oracle, which sees them all, has over the choice. Judge a "
                  "method by a scorer that is not its own objective.", style="dim", highlight=False)


def _text(value: float) -> str:
    return f"{value:.2f}".replace("-", "−") if math.isfinite(value) else "–"

"""A comparison on the terminal, and the cells that every other form of it shares.

Every number is formatted by :meth:`cl_bench.compare.comparison.Metric.text`, here and on the page: mean ± half of the 95 %
t-interval over (seed, class order); a mean of one run stands alone, and what was not measured is an en dash.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..numbers.metrics import COST, all_metrics
from .comparison import Comparison, Group, Row
from .terminal import PIPE, terminal, trimmed

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["AILING", "LEGEND", "REFERENCE", "cell_text", "footer", "head_of", "mark_of", "print_tables", "state_of"]

MARKS = {"best": "●", "tied": "○", "undecided": "◌", "behind": "", "": ""}
REFERENCE = "†"
AILING = "!"
LEGEND = ("Mean ± half of the 95 % t-interval over n runs (seed × class order).", "● best mean; ○ not distinguishable "
          "from it (paired sign-flip test, Holm, p > 0.05); ◌ too few pairs to tell; † a bound, no competitor.")


def cell_text(row: Row, name: str, plus_minus: str = " ± ") -> str:
    """``89.12 ± 1.30``; without the second part for one run, and for a cost that did not vary."""
    cell, metric = row.cells[name], all_metrics()[name]
    text, spread = metric.text(cell.mean), metric.text(cell.half_width)
    known = math.isfinite(cell.half_width) and not (name in COST and not spread.strip("0."))
    return text + plus_minus + spread if known else text


def mark_of(row: Row) -> str:
    return (REFERENCE if row.reference else MARKS[row.standing]) + (AILING if row.flags else "")


LABEL_WIDTH = 26  # a method's label with its changed arguments may be long; it is folded, not the numbers left out


def state_of(row: Row) -> str:
    """n, with what did not finish: ``3 (+1 failed)``."""
    more = [f"{count} {word}" for count, word in ((row.failed, "failed"), (row.unfinished, "unfinished")) if count]
    return f"{row.n}" + (f" (+{', '.join(more)})" if more else "")


def print_tables(comparison: Comparison, console: Console | None = None) -> None:
    """One table per group on the terminal (rich)."""
    from rich.console import Console
    from rich.markup import escape
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    if console is None:
        console = terminal(Console())
    piped = console.width >= PIPE
    for group in comparison.groups:
        columns = _fitting(group, console.width)
        if piped:
            console.file.write("".join(f"{line}\n" for line in [*_lines(group, columns), *_notes(group, columns, "  "), ""]))
            continue
        table = Table(title=escape(group.title), title_justify="left", title_style="bold", header_style="bold",
                      box=None, pad_edge=False, padding=(0, 1))
        for head, side in (("", "left"), ("method", "left"), ("n", "right")):
            table.add_column(head, justify=side, overflow="fold", max_width=LABEL_WIDTH)  # type: ignore[arg-type]
        for name in columns:
            table.add_column("\n".join(head_of(name)), justify="right", no_wrap=True)
        for row in group.rows:
            table.add_row(mark_of(row), escape(row.method), state_of(row), *(cell_text(row, n) for n in columns),
                          style="bold" if row.best else "")
        trimmed(console, table)
        for note in _notes(group, columns):
            trimmed(console, Padding(Text(note, style="dim"), (0, 0, 0, 2)))
        console.print()
    for line in LEGEND:
        console.print(escape(line), style="dim", highlight=False)
    for problem in comparison.problems:
        console.print(f"Left out: {escape(problem)}", style="yellow", highlight=False)


def _notes(group: Group, columns: list[str], before: str = "") -> list[str]:
    notes = [text for text, _, _ in footer(group, legend=False)]
    if hidden := [all_metrics()[n].label for n in group.metrics if n not in columns]:
        notes.append(f"Not shown in this width: {', '.join(hidden)}.")
    return [before + note for note in notes]


def _lines(group: Group, columns: list[str]) -> list[str]:
    """A table for a pipe, a line per method: what rich makes of it, at a tenth of the price for a thousand rows."""
    from rich.cells import cell_len

    heads = [[""], ["method"], ["n"], *map(head_of, columns)]
    high = max(map(len, heads))
    rows = [[([""] * (high - len(h)) + h)[k] for h in heads] for k in range(high)]
    rows += [[mark_of(row), row.method, state_of(row), *(cell_text(row, n) for n in columns)] for row in group.rows]
    widths = [max(cell_len(row[k]) for row in rows) for k in range(len(heads))]
    fill = [[" " * (w - cell_len(text)) for w, text in zip(widths, row, strict=True)] for row in rows]
    lines = ["  ".join(text + pad if k < 2 else pad + text for k, (text, pad) in enumerate(zip(row, pads, strict=True)))
             for row, pads in zip(rows, fill, strict=True)]
    return [group.title, *(line.rstrip() for line in lines)]


def head_of(name: str) -> list[str]:
    """A column's head in short lines, the unit in the last."""
    metric = all_metrics()[name]
    return [*metric.label.split(" "), f"{metric.unit} {metric.arrow}".rstrip()]


def _fitting(group: Group, width: int) -> list[str]:
    """The leading columns that fit a terminal; at least one is kept."""
    used = 4 + max(min(len(r.method), LABEL_WIDTH) for r in group.rows) + max(len(state_of(r)) for r in group.rows)
    out: list[str] = []
    for name in group.metrics:
        used += 2 + max([len(line) for line in head_of(name)] + [len(cell_text(row, name)) for row in group.rows])
        if out and used > width:
            break
        out.append(name)
    return out


def footer(group: Group, legend: bool = True) -> list[tuple[str, str, str]]:
    """What stands under a table: (sentence, its column, its method), both empty where it is for all."""
    known = all_metrics()
    defined = [(f"{known[n].label}: {known[n].note}.", n, "") for n in group.metrics if n.startswith("forgetting")]
    ailing = [(f"{AILING} {row.method}: {flag.sentence}.", "", row.method) for row in group.rows for flag in row.flags]
    plain = [f"Protocol {group.fingerprint}.", *(LEGEND if legend else ())]
    return [*((text, "", "") for text in plain), *defined, *ailing, *((note, "", "") for note in group.notes)]

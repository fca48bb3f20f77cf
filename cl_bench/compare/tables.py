"""A comparison as text: terminal table, CSV, Markdown and LaTeX, with the same numbers as the page.

Every number is formatted by :meth:`cl_bench.compare.comparison.Metric.text`, here and on the page: mean ± half of the 95 %
t-interval over (seed, class order); a mean of one run stands alone, and what was not measured is an en dash.
"""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..numbers.metrics import COST, all_metrics
from ..records.results import write_atomically
from .comparison import Comparison, Group, Row
from .places import hide_places

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["cell_text", "export", "inert", "label_of", "print_tables", "tex", "to_csv", "to_latex", "to_markdown"]

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


def _mark(row: Row) -> str:
    return (REFERENCE if row.reference else MARKS[row.standing]) + (AILING if row.flags else "")


LABEL_WIDTH = 26  # a method's label with its changed arguments may be long; it is folded, not the numbers left out


def _state(row: Row) -> str:
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
        console = Console()
        if not console.is_terminal:
            console = Console(width=max(console.width, 132))  # a log or a pipe has no width of its own to respect
    for group in comparison.groups:
        columns = _fitting(group, console.width)
        table = Table(title=escape(group.title), title_justify="left", title_style="bold", header_style="bold",
                      box=None, pad_edge=False, padding=(0, 1))
        for head, side in (("", "left"), ("method", "left"), ("n", "right")):
            table.add_column(head, justify=side, overflow="fold", max_width=LABEL_WIDTH)  # type: ignore[arg-type]
        for name in columns:
            table.add_column("\n".join(_head(name)), justify="right", no_wrap=True)
        for row in group.rows:
            table.add_row(_mark(row), escape(row.method), _state(row), *(cell_text(row, n) for n in columns),
                          style="bold" if row.best else "")
        console.print(table)
        notes = _footer(group, legend=False)
        if hidden := [all_metrics()[n].label for n in group.metrics if n not in columns]:
            notes.append(f"Not shown in this width: {', '.join(hidden)}.")
        for note in notes:
            console.print(Padding(Text(note), (0, 0, 0, 2)), style="dim", highlight=False)
        console.print()
    for line in LEGEND:
        console.print(escape(line), style="dim", highlight=False)
    for problem in comparison.problems:
        console.print(f"Left out: {escape(problem)}", style="yellow", highlight=False)


def _head(name: str) -> list[str]:
    """A column's head in short lines, the unit in the last."""
    metric = all_metrics()[name]
    return [*metric.label.split(" "), f"{metric.unit} {metric.arrow}".rstrip()]


def _fitting(group: Group, width: int) -> list[str]:
    """The leading columns that fit a terminal; at least one is kept."""
    used = 4 + max(min(len(r.method), LABEL_WIDTH) for r in group.rows) + max(len(_state(r)) for r in group.rows)
    out: list[str] = []
    for name in group.metrics:
        used += 2 + max([len(line) for line in _head(name)] + [len(cell_text(row, name)) for row in group.rows])
        if out and used > width:
            break
        out.append(name)
    return out


def _footer(group: Group, legend: bool = True) -> list[str]:
    defined = [f"{all_metrics()[n].label}: {all_metrics()[n].note}." for n in group.metrics if n.startswith("forgetting")]
    ailing = [f"{AILING} {sentence}" for sentence in group.warnings]
    return [f"Protocol {group.fingerprint}.", *(LEGEND if legend else ()), *defined, *ailing, *group.notes]


def to_csv(comparison: Comparison) -> str:
    """One line per method and table; per metric mean, interval ends, standard deviation and the n it rests on."""
    names = [n for n in all_metrics() if any(n in g.metrics for g in comparison.groups)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["scenario", "backbone", "fingerprint", "method", "family", "n", "unfinished", "failed", "standing",
            "reference", "warnings"]
    for name in names:
        unit = all_metrics()[name].unit.replace("%", "percent").replace(" ", "_")
        head += [f"{name}_{unit}", f"{name}_low", f"{name}_high", f"{name}_std", f"{name}_n"]
    writer.writerow(head)
    for group in comparison.groups:
        for row in group.rows:
            line = [group.scenario, group.backbone, group.fingerprint, row.method, row.family, row.n, row.unfinished,
                    row.failed, row.standing, row.reference, "; ".join(flag.sentence for flag in row.flags)]
            for name in names:
                cell, metric = row.cells[name], all_metrics()[name]
                line += ["" if not math.isfinite(v) else metric.text(v).replace("−", "-")
                         for v in (cell.mean, cell.low, cell.high, cell.std)] + [cell.n]
            writer.writerow([inert(v) for v in line])
    return out.getvalue()


def inert(value: object) -> object:
    """Text that a spreadsheet would run as a formula gets a leading apostrophe; negative numbers stay numbers. Places of this
    machine are left out."""
    value = hide_places(value) if isinstance(value, str) else value
    if isinstance(value, str) and value[:1] in tuple("=+-@\t\r"):
        try:
            float(value)
        except ValueError:
            return "'" + value
    return value


def to_markdown(comparison: Comparison) -> str:
    """One table per group; the best method in bold."""
    def clean(text: str) -> str:
        return hide_places(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
    parts = []
    for group in comparison.groups:
        lines = [f"### {clean(group.title)}", "", "| | method | n | " + " | ".join(all_metrics()[n].header for n in
                 group.metrics) + " |", "|---|---|--:|" + "--:|" * len(group.metrics)]
        for row in group.rows:
            name = f"**{clean(row.method)}**" if row.best else clean(row.method)
            cells = " | ".join(cell_text(row, n) for n in group.metrics)
            lines.append(f"| {_mark(row)} | {name} | {_state(row)} | {cells} |")
        parts.append("\n".join([*lines, "", *(f"{clean(note)}  " for note in _footer(group)), ""]))
    return "\n".join(parts)


_TEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--", "±": r"$\pm$", "↑": r"$\uparrow$",
        "↓": r"$\downarrow$", "●": r"$\bullet$", "○": r"$\circ$", "◌": r"$\odot$", "†": r"$\dagger$",
        "×": r"$\times$", "·": r"$\cdot$",
        "<": "$<$", ">": "$>$", "\n": " "}


def tex(text: str) -> str:
    """Text as LaTeX prints it, without places of this machine."""
    return "".join(_TEX.get(c, c) for c in hide_places(text))


def to_latex(comparison: Comparison) -> str:
    r"""One ``all_metrics`` per group for booktabs; the best method in bold. Tables of many columns are scaled to the line's
    width, which needs graphicx."""
    parts = [r"% \usepackage{booktabs,graphicx}"]
    for group in comparison.groups:
        heads = [r"\shortstack[r]{" + r"\\".join(tex(line) for line in _head(n)) + "}" for n in group.metrics]
        wide = len(heads) > 5
        lines = [r"\begin{table}[t]", r"\centering", r"\small", *([r"\resizebox{\linewidth}{!}{%"] if wide else []),
                 r"\begin{tabular}{llr" + "r" * len(heads) + "}", r"\toprule",
                 " & ".join(["", "method", "$n$", *heads]) + r" \\", r"\midrule"]
        for row in group.rows:
            name = rf"\textbf{{{tex(row.method)}}}" if row.best else tex(row.method)
            cells = [tex(cell_text(row, n)) for n in group.metrics]
            lines.append(" & ".join([tex(_mark(row)), name, tex(_state(row)), *cells]) + r" \\")
        caption = " ".join(tex(note) for note in (group.title + ".", *_footer(group)))
        lines += [r"\bottomrule", r"\end{tabular}" + ("}" if wide else ""), rf"\caption{{{caption}}}",
                  rf"\label{{tab:{label_of(group.title)}}}", r"\end{table}"]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def label_of(title: str) -> str:
    """A title as a LaTeX label: letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-").lower()


WRITERS = {".csv": to_csv, ".md": to_markdown, ".tex": to_latex}


def export(comparison: Comparison, path: str | Path) -> Path:
    """Write the tables in the format of the file's ending (.csv, .md, .tex); raises UserError for another ending or a
    place that cannot be written."""
    path = Path(path)
    if path.suffix not in WRITERS:
        raise UserError(f"Tables are written as {', '.join(WRITERS)}, not {path.suffix or 'a file without ending'!r}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, WRITERS[path.suffix](comparison).encode())
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error.strerror}): choose another place.") from error
    return path

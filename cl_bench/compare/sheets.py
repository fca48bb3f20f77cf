r"""Tables as CSV, Markdown and LaTeX, cut to the methods and columns that are wanted.

A :class:`Sheet` is one table as cells of text. The page holds the sheets and puts them together as :func:`assemble` does, so
that what it saves follows what is shown; ``tests/test_dashboard_browser_paper.py`` holds both to the same bytes.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..numbers.metrics import all_metrics
from ..records.results import write_atomically
from .comparison import Comparison, Group
from .memo import kept
from .overall import Overall, overall
from .places import hide_places
from .tables import cell_text, footer, head_of, mark_of, state_of

__all__ = ["FORMATS", "WRITERS", "Sheet", "assemble", "export", "inert", "label_of", "sheets", "tex", "to_csv", "to_latex",
           "to_markdown"]

FORMATS = ("csv", "md", "tex")


@dataclass(frozen=True)
class Sheet:
    """One table. ``group``: which (a group's key; ``overall`` and the metric for one over scenarios); ``lead``: heads of the
    first cells of a row; ``columns``: (name, heads of its cells); ``rows``: (method, first cells, {column: its cells});
    ``notes``: (sentence, column, method), told where both are shown; ``title`` and ``label`` as the format writes them."""

    group: str
    title: str
    label: str
    lead: list[str]
    columns: list[tuple[str, list[str]]]
    rows: list[tuple[str, list[str], dict[str, list[str]]]]
    notes: list[tuple[str, str, str]]

    def plain(self) -> dict[str, Any]:
        """As the page holds it."""
        return {"group": self.group, "title": self.title, "label": self.label, "lead": self.lead, "columns": self.columns,
                "rows": self.rows, "notes": self.notes}


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


def _quoted(cells: Sequence[object]) -> list[str]:
    """Cells as a line of CSV writes them."""
    out = []
    for cell in cells:
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow([inert(cell), ""])
        out.append(text.getvalue()[:-1])
    return out


def _markdown(text: str) -> str:
    return hide_places(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


_TEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--", "±": r"$\pm$", "↑": r"$\uparrow$",
        "↓": r"$\downarrow$", "●": r"$\bullet$", "○": r"$\circ$", "◌": r"$\odot$", "†": r"$\dagger$",
        "×": r"$\times$", "·": r"$\cdot$", "…": r"\ldots{}", "≤": r"$\leq$", "≥": r"$\geq$", "α": r"$\alpha$",
        "<": "$<$", ">": "$>$", "\n": " "}


def tex(text: str) -> str:
    """Text as LaTeX prints it, without places of this machine; signs that its fonts lack are told by a question mark."""
    found = (_TEX.get(c, c) for c in hide_places(text))
    return "".join(c if len(c) > 1 or c.isascii() or (c.isalpha() and ord(c) < 0x250) else "?" for c in found)


def label_of(title: str) -> str:
    """A title as a LaTeX label: letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-").lower()


def sheets(comparison: Comparison, kind: str, over: bool = False, columns: Sequence[str] = ()) -> list[Sheet]:
    """The tables for a format of :data:`FORMATS`: one per group, or (``over``) one per metric over all scenarios."""
    if over:
        runs = [run for g in comparison.groups for run in g.runs]
        what = ("overall", tuple(columns), *((g.title, tuple(g.metrics)) for g in comparison.groups))
        return [_overall(made, kind) for made in kept(runs, what, lambda: overall(comparison, columns))]
    names = [n for n in all_metrics() if any(n in g.metrics for g in comparison.groups)]
    made = []
    for g in comparison.groups:  # a page that follows its folder asks again for tables that have not changed
        what = ("sheet", kind, g.title, *g.metrics, *(row.method for row in g.rows), *(names if kind == "csv" else ()))
        made.append(kept(g.runs, what, lambda g=g: (  # type: ignore[misc]
            _csv_sheet(g, names) if kind == "csv" else _text_sheet(g, kind))))
    return made


def _key(group: Group) -> str:
    return f"{group.title}#{group.fingerprint}"


def _csv_sheet(group: Group, names: Sequence[str]) -> Sheet:
    known = all_metrics()
    lead = ["scenario", "backbone", "fingerprint", "method", "family", "n", "unfinished", "failed", "standing", "reference",
            "warnings"]
    columns = []
    for name in names:
        unit = known[name].unit.replace("%", "percent").replace(" ", "_")
        columns.append((name, [f"{name}_{unit}", f"{name}_low", f"{name}_high", f"{name}_std", f"{name}_n"]))
    rows = []
    for row in group.rows:
        first = [group.scenario, group.backbone, group.fingerprint, row.method, row.family, row.n, row.unfinished, row.failed,
                 row.standing, row.reference, "; ".join(flag.sentence for flag in row.flags)]
        cells = {}
        for name in names:
            cell = row.cells[name]
            cells[name] = _quoted([*("" if not math.isfinite(v) else known[name].text(v).replace("−", "-")
                                     for v in (cell.mean, cell.low, cell.high, cell.std)), cell.n])
        rows.append((row.method, _quoted(first), cells))
    return Sheet(_key(group), group.title, "", lead, columns, rows, [])


def _text_sheet(group: Group, kind: str) -> Sheet:
    said = tex if kind == "tex" else _markdown
    rows = []
    for row in group.rows:
        name = said(row.method)
        if row.best:
            name = rf"\textbf{{{name}}}" if kind == "tex" else f"**{name}**"
        rows.append((row.method, [said(mark_of(row)) if kind == "tex" else mark_of(row), name, said(state_of(row))],
                     {n: [said(cell_text(row, n))] for n in group.metrics}))
    columns = [(n, [_stacked(head_of(n)) if kind == "tex" else all_metrics()[n].header]) for n in group.metrics]
    lead = ["", "method", "$n$" if kind == "tex" else "n"]
    notes = [(said(text), column, method) for text, column, method in footer(group)]
    return Sheet(_key(group), said(group.title), label_of(group.title), lead, columns, rows, notes)


def _stacked(lines: Sequence[str]) -> str:
    return r"\shortstack[r]{" + r"\\".join(tex(line) for line in lines) + "}"


def _overall(made: Overall, kind: str) -> Sheet:
    said = {"tex": tex, "md": _markdown}.get(kind, str)
    columns, rows = [], []
    for key, (scenario, more) in made.scenarios.items():
        lines = [scenario, *more.split(" · ")]
        head = {"tex": _stacked(lines), "md": said(" · ".join(lines))}.get(kind, scenario)
        columns.append((key, [head] if kind != "csv" else _quoted([f"{scenario} ({more})" if more else scenario])))
    if made.ranks:
        columns.append(("rank", [_stacked(["mean", "rank"]) if kind == "tex" else "mean rank"]))
    for method in made.methods:
        cells = {key: [said(text)] if kind != "csv" else _quoted([text]) for key, text in made.cells[method].items()}
        if made.ranks:
            cells["rank"] = [f"{made.ranks[method]:.2f}" if method in made.ranks else said("–")]
        rows.append((method, [said(method)] if kind != "csv" else _quoted([method]), cells))
    notes = [(said(text), "", "") for text in made.notes]
    return Sheet(f"overall {made.metric}", said(made.title), label_of(made.title), ["method"], columns, rows, notes)


def assemble(found: Sequence[Sheet], kind: str, methods: Collection[str] | None = None, columns: Collection[str] | None = None,
             ) -> str:
    """Sheets as one file; of ``methods`` and ``columns`` alone, where they are given."""
    parts, head = [], ""
    for sheet in found:
        names = [(name, heads) for name, heads in sheet.columns if columns is None or name in columns or name == "rank"]
        rows = [row for row in sheet.rows if methods is None or row[0] in methods]
        if not rows:
            continue
        shown = {name for name, _ in names}
        notes = [text for text, column, method in sheet.notes if (not column or column in shown) and (
            not method or any(row[0] == method for row in rows))]
        heads = [*sheet.lead, *(text for _, cells in names for text in cells)]
        lines = [[*first, *(text for name, heads in names for text in cells.get(name, [""] * len(heads)))]
                 for _, first, cells in rows]
        if kind == "csv":
            own = ",".join(heads)
            parts.append("".join([own + "\n" if own != head else "", *(",".join(line) + "\n" for line in lines)]))
            head = own
        elif kind == "md":
            sides = ["--:" if text == "n" or k >= len(sheet.lead) else "---" for k, text in enumerate(heads)]
            parts.append("\n".join([f"### {sheet.title}", "", _bars(heads), "|" + "|".join(sides) + "|", *map(_bars, lines), "",
                                    *(f"{note}  " for note in notes), ""]))
        else:
            parts.append(_tabular(sheet, heads, lines, notes))
    return (r"% \usepackage{booktabs,graphicx}" + "\n\n" + "\n\n".join(parts) + "\n" if kind == "tex" else
            "".join(parts) if kind == "csv" else "\n".join(parts))


def _bars(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _tabular(sheet: Sheet, heads: list[str], lines: list[list[str]], notes: list[str]) -> str:
    count = len(heads) - len(sheet.lead)
    wide = count > 5
    sides = "".join("r" if text == "$n$" else "l" for text in sheet.lead) + "r" * count
    caption = " ".join([sheet.title + ".", *notes])
    return "\n".join([
        r"\begin{table}[t]", r"\centering", r"\small", *([r"\resizebox{\linewidth}{!}{%"] if wide else []),
        r"\begin{tabular}{" + sides + "}", r"\toprule", " & ".join(heads) + r" \\", r"\midrule",
        *(" & ".join(line) + r" \\" for line in lines), r"\bottomrule", r"\end{tabular}" + ("}" if wide else ""),
        rf"\caption{{{caption}}}", rf"\label{{tab:{sheet.label}}}", r"\end{table}"])


def to_csv(comparison: Comparison, over: bool = False) -> str:
    """One line per method and table; per metric mean, interval ends, standard deviation and the n it rests on."""
    return assemble(sheets(comparison, "csv", over), "csv")


def to_markdown(comparison: Comparison, over: bool = False) -> str:
    """One table per group; the best method in bold."""
    return assemble(sheets(comparison, "md", over), "md")


def to_latex(comparison: Comparison, over: bool = False) -> str:
    r"""One ``table`` per group for booktabs; the best method in bold. Tables of many columns are scaled to the line's
    width, which needs graphicx."""
    return assemble(sheets(comparison, "tex", over), "tex")


WRITERS = {".csv": to_csv, ".md": to_markdown, ".tex": to_latex}


def export(comparison: Comparison, path: str | Path, over: bool = False, columns: Sequence[str] = ()) -> Path:
    """Write the tables in the format of the file's ending (.csv, .md, .tex); raises UserError for another ending or a
    place that cannot be written. ``over``: one table over scenarios, of the metrics in ``columns``."""
    path = Path(path)
    if path.suffix not in WRITERS:
        raise UserError(f"Tables are written as {', '.join(WRITERS)}, not {path.suffix or 'a file without ending'!r}.")
    kind = path.suffix[1:]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, assemble(sheets(comparison, kind, over, columns), kind).encode())
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error.strerror}): choose another place.") from error
    return path

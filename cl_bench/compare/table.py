"""A comparison as rows for Python and notebooks: the numbers of every other view, unformatted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ..numbers.metrics import all_metrics
from .comparison import Comparison, Group, Row
from .tables import REFERENCE, cell_text

__all__ = ["Compared", "Table", "rows_of"]


@dataclass(frozen=True)
class Table:
    """Rows (dictionaries: ``scenario``, ``method``, ``n``, ``standing``, and per metric ``name``, ``name_low``, ``name_high``)
    that print as text, show as HTML and become a pandas frame by ``pandas.DataFrame(table.rows)``."""

    rows: list[dict[str, Any]]
    cells: list[tuple[str, list[str], list[list[str]]]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def __str__(self) -> str:
        parts = []
        for title, head, lines in self.cells:
            widths = [max(len(row[k]) for row in [head, *lines]) for k in range(len(head))]
            sides = [str.ljust, str.ljust, *[str.rjust] * (len(head) - 2)]
            text = ["  ".join(side(cell, w) for side, cell, w in zip(sides, row, widths, strict=True))
                    for row in [head, *lines]]
            parts.append("\n".join([title, *(line.rstrip() for line in text)]))
        return "\n\n".join(parts)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        out = []
        for title, head, lines in self.cells:
            top = "".join(f"<th>{escape(h)}</th>" for h in head)
            body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in lines)
            out.append(f"<h4>{escape(title)}</h4><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>")
        return "".join(out)


class Compared(Comparison):
    """A comparison that shows itself in a notebook: what ``cl_bench.compare(runs)`` returns."""

    def table(self, *columns: str) -> Table:
        """One row per method and table; ``columns``: names of metrics, by default those of the page."""
        return rows_of(self, columns or None)

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def rows_of(comparison: Comparison, columns: Sequence[str] | None = None) -> Table:
    """The table of a comparison; ``columns``: names of metrics, by default those of the page."""
    rows = [_row(group, row, columns or group.metrics) for group in comparison.groups for row in group.rows]
    return Table(rows, [_cells(group, columns or group.metrics) for group in comparison.groups])


def _row(group: Group, row: Row, names: Sequence[str]) -> dict[str, Any]:
    out: dict[str, Any] = {"scenario": group.scenario, "backbone": group.backbone, "protocol": group.fingerprint,
                           "method": row.method, "n": row.n, "standing": row.reference or row.standing}
    for name in names:
        cell = row.cells[name]
        out |= {name: cell.mean, f"{name}_low": cell.low, f"{name}_high": cell.high}
    return out


def _cells(group: Group, names: Sequence[str]) -> tuple[str, list[str], list[list[str]]]:
    known = all_metrics()
    head = ["", "method", "n", *(known[name].header for name in names)]
    marks = {"best": "●", "tied": "○", "undecided": "◌"}
    return group.title, head, [[REFERENCE if row.reference else marks.get(row.standing, ""), row.method, str(row.n),
                                *(cell_text(row, name) for name in names)] for row in group.rows]

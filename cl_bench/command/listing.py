"""``cl-bench list``: read from source and entry points; nothing is imported but for counting parameters."""

from __future__ import annotations

import json
from typing import Any

from ..errors import UserError
from ..registry import GROUPS, Entry, entries
from .shipped import shipped_configs

__all__ = ["rows", "show"]


def rows(kind: str) -> list[dict[str, Any]]:
    """One dictionary per entry of ``kind``, sorted by family and name."""
    if kind in ("suites", "configs"):
        return _configs("suite") if kind == "suites" else [*_configs("run"), *_configs("published")]
    found = [_row(e) for e in entries(GROUPS[kind]).values()]
    return sorted(found, key=lambda r: (str(r.get("family", "")), r["name"]))


def _row(entry: Entry) -> dict[str, Any]:
    facts = entry.facts
    row: dict[str, Any] = {"name": entry.name, "summary": entry.summary, "from": entry.distribution}
    for key in ("family", "needs", "gives", "paper", "mergeable"):
        if key in facts:
            row[key] = facts[key]
    return row


def _configs(folder: str) -> list[dict[str, Any]]:
    out = []
    for name, file in shipped_configs().items():
        if not name.startswith(f"{folder}/"):
            continue
        about = [line.lstrip("# ").rstrip() for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        paragraphs = "\n".join(about).split("\n\n")
        out.append({"name": name if folder == "published" else file.stem, "summary": " ".join(paragraphs[0].split()),
                    "more": [" ".join(p.split()) for p in paragraphs[1:]]})
    return out


def show(kind: str, *, backbone: str | None = None, as_json: bool = False) -> None:
    """Print a table of ``kind``; with ``backbone``, adapters show their trainable parameters on it.

    Raises:
        UserError: for ``backbone`` with another kind.
    """
    found = rows(kind)
    if backbone is not None:
        if kind != "adapters":
            raise UserError("--backbone goes with `cl-bench list adapters`.")
        from .parts import ROOTS, bases, make, read_part

        part = read_part("backbone", bases()[ROOTS["backbone"]], backbone)
        for row in found:
            row["parameters"] = _count(row["name"], make(part, ROOTS["backbone"]))
    if as_json:
        print(json.dumps(found, indent=1))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..compare.terminal import terminal, trimmed

    console = terminal(Console())
    columns = ["name", *[c for c in ("family", "needs", "gives", "parameters", "mergeable", "paper", "summary")
                         if any(row.get(c) not in (None, "", []) for row in found)]]
    narrow = console.width < 120 and "paper" in columns
    if narrow:  # families as headings, and each paper under its summary: two columns less
        columns = [c for c in columns if c not in ("family", "paper")]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == "name",
                         justify="right" if column == "parameters" else "left")
    family = ""
    for row in found:
        if narrow and row.get("family", family) != family:
            family = row["family"]
            table.add_row(f"[bold]{escape(family)}[/bold]")
        cells = [escape(_text(row.get(c))) for c in columns]
        if narrow and row.get("paper"):
            cells[-1] += f"\n[dim]{escape(row['paper'])}[/dim]"
        table.add_row(*cells)
    trimmed(console, table)
    console.print(f"[dim]{len(found)} {kind}[/dim]")
    if backbone is not None:
        console.print(f"[dim]parameters: trainable on {escape(backbone)}, settings at their defaults, on the four linears of "
                      "every block (or every convolution), or around every block[/dim]")


def _count(kind: str, network: Any) -> int | None:
    """Trainable parameters of ``kind`` at its defaults: on the four linears of every block (else every convolution) for
    kinds on weights, around every block for kinds around layers; None where ``network`` has no such place."""
    from ..adapters import FUSED4, attach
    from ..registry import find

    adapter = find(GROUPS["adapters"], kind)
    for at in (FUSED4, r"(.*\.)?conv\d*") if adapter.level == "weight" else (r"(.*\.)?blocks\.\d+",):
        try:
            adapters = attach(network, kind, at, grams={} if adapter.needs_gram else None)
        except UserError:
            continue  # no such layer here, or not one for this kind: the next place
        return sum(p.numel() for p in adapters.parameters() if p.requires_grad)
    return None


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

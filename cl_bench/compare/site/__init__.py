"""A leaderboard as plain files: one page per protocol, made from submitted archives, with where each number comes from.

What an archive says is somebody else's word: names are text and nothing more, a run that a verification refused ranks
nowhere, two codes under one name are two rows, and a later submission of the same run replaces no earlier one.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...numbers.metrics import all_metrics
from ...records.archive import Archive, unpacked
from ...records.audit import record_digest
from ...records.results import Run, load, write_atomically
from ..comparison import Comparison, Group, Row, compare
from ..sheets import to_csv
from ..tables import cell_text

__all__ = ["Site", "build", "frames", "visible"]

TEMPLATES = Path(__file__).parent / "templates"
LARGEST_REPORT = 1 << 20
LEVELS = ("not", "", "spread", "counts", "bits")  # from refused to best; "" was never verified
WORDS = {"bits": "verified, the same bits", "counts": "verified, the same counts", "spread": "verified, within the spread",
         "": "not verified", "not": "refused"}


@dataclass
class Entry:
    """A run, the archive that it came in, and what a verification said of it."""

    run: Run
    archive: Archive
    digest: str
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def level(self) -> str:
        return str(self.report.get("level", ""))

    @property
    def state(self) -> str:
        return WORDS[self.level]

    def key(self) -> tuple[Any, ...]:
        """What two runs share that are one result twice."""
        return self.run.fingerprint, self.run.method, self.run.source_digest, self.run.seed, self.run.order


@dataclass
class Site:
    """What was built: how many runs, archives and tables; ``problems``: what was left out, one sentence each."""

    runs: int = 0
    archives: int = 0
    tables: int = 0
    problems: list[str] = field(default_factory=list)


def visible(text: object, length: int = 200) -> str:
    """Text of unknown origin as one line: characters that are not seen, or turn the reading direction, by their number."""
    shown = "".join(c if unicodedata.category(c)[0] not in "C" and c not in "\u2028\u2029" else f"\\u{ord(c):04x}"
                    for c in str(text)[:length + 1])
    return shown if len(shown) <= length else f"{shown[:length]}…"


def frames() -> Any:
    """The templates; whatever a record says is text in them."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    environment.filters["seen"] = visible
    return environment


def build(archives: Sequence[Path], reports: Sequence[Path], scratch: Path, out: Path, title: str) -> Site:
    """Write the pages of ``archives`` to the folder ``out``; ``scratch`` is an empty folder to unpack them in.

    Raises:
        UserError: where none of them can be read, or the pages cannot be written.
    """
    site = Site()
    said = _reports(reports, site)
    entries = _entries(archives, said, scratch, site)
    if not entries:
        raise UserError("there is no archive here that can be read" + (f": {site.problems[0]}" if site.problems else
                        "; `cl-bench export` makes them."))
    ranked = _ranked([e for e in entries if e.level != "not"], site)
    comparison = compare([e.run for e in ranked], by="fingerprint") if ranked else Comparison([])
    site.runs, site.tables = len(entries), len(comparison.groups)
    pages = _pages(comparison, {e.run.id: e for e in ranked}, [e for e in entries if e.level == "not"], site, title)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for old in out.glob("protocol-*.html"):
            if old.name not in pages:
                old.unlink()
        for name, text in pages.items():
            write_atomically(out / name, text.encode())
    except OSError as fault:
        raise UserError(f"cannot write to {out} ({fault.strerror}); choose another place with -o.") from fault
    return site


def _reports(files: Sequence[Path], site: Site) -> dict[str, Mapping[str, Any]]:
    """The latest report on each record, by the record's digest."""
    found: dict[str, Mapping[str, Any]] = {}
    for file in files:
        try:
            if file.stat().st_size > LARGEST_REPORT:
                raise ValueError("it is too large")
            report = json.loads(file.read_bytes())
            if not (isinstance(report, dict) and report.get("format") == 1 and report.get("level") in LEVELS[:1] + LEVELS[2:]
                    and isinstance(report.get("record"), str) and isinstance(report.get("reasons"), list)):
                raise ValueError("it is no report of cl-bench verify")
        except (OSError, ValueError, RecursionError) as fault:
            site.problems.append(f"{file.name} cannot be read as a report: {fault}")
            continue
        older = found.get(report["record"])
        if older is None or str(report.get("checked", "")) >= str(older.get("checked", "")):
            found[report["record"]] = report
    return found


def _entries(archives: Sequence[Path], said: Mapping[str, Mapping[str, Any]], scratch: Path, site: Site) -> list[Entry]:
    found: dict[str, Entry] = {}
    for k, path in enumerate(archives):
        (inside := scratch / str(k)).mkdir()
        try:
            archive = unpacked(path, inside)
        except UserError as fault:
            site.problems.append(str(fault).replace(str(path), path.name))
            continue
        site.archives += 1
        for run_id in archive.runs:
            run = load(inside / run_id)
            digest = record_digest(run.record, run.arrays())
            entry = Entry(run, archive, digest, said.get(digest, {}))
            other = found.setdefault(run_id, entry)
            if other is not entry and other.digest != digest:
                site.problems.append(f"{run_id} of {path.name} is another run than that of {other.archive.path.name}")
    return list(found.values())


def _ranked(entries: Sequence[Entry], site: Site) -> list[Entry]:
    """The runs that count: of one result twice the one verified best, then the first; two codes never share a row."""
    best: dict[tuple[Any, ...], Entry] = {}
    failed = [e for e in entries if e.run.status != "finished"]
    for entry in sorted((e for e in entries if e.run.status == "finished"), key=lambda e: -LEVELS.index(e.level)):
        if best.setdefault(entry.key(), entry) is not entry:
            site.problems.append(f"{entry.run.id} of {entry.archive.path.name} repeats {best[entry.key()].run.id}")
    codes: dict[tuple[str, str], set[str]] = {}
    kept = [*best.values(), *failed]
    for entry in kept:
        codes.setdefault((entry.run.fingerprint, entry.run.method), set()).add(entry.run.source_digest)
    return [_named_by_code(e) if len(codes[e.run.fingerprint, e.run.method]) > 1 else e for e in kept]


def _named_by_code(entry: Entry) -> Entry:
    run = entry.run
    label = f"{run.method} · code {run.source_digest[:8]}"
    return replace(entry, run=replace(run, record={**run.record, "method": {**run.record["method"], "label": label}}))


def _pages(comparison: Comparison, entries: Mapping[str, Entry], refused: Sequence[Entry], site: Site,
           title: str) -> dict[str, str]:
    environment = frames()
    tables = [_table(group, entries) for group in comparison.groups]
    pages = {table["file"]: environment.get_template("protocol.html").render(
        table=table, title=title, refused=[e for e in refused if e.run.fingerprint == table["id"]]) for table in tables}
    index = environment.get_template("index.html").render(title=title, tables=tables, site=site, refused=refused)
    return {"index.html": index, **pages, "tables.csv": to_csv(comparison)}


def _table(group: Group, entries: Mapping[str, Entry]) -> dict[str, Any]:
    fingerprint = group.runs[0].record["fingerprint"]
    name = group.fingerprint if re.fullmatch(r"[0-9a-f]{12}", group.fingerprint) else "unnamed"
    known = all_metrics()
    return {
        "id": group.fingerprint, "file": f"protocol-{name}.html", "title": group.title, "name": fingerprint.get("name", ""),
        "fields": sorted((fingerprint.get("fields") or {}).items()), "notes": [*group.notes, *group.warnings],
        "heads": [(known[n].header, known[n].note) for n in group.metrics],
        "rows": [_row(row, group, entries) for row in group.rows],
        "methods": len(group.rows), "runs": sum(row.n for row in group.rows),
        "verified": sum(entries[r.id].level not in ("", "not") for row in group.rows for r in row.runs.values()),
    }


def _row(row: Row, group: Group, entries: Mapping[str, Entry]) -> dict[str, Any]:
    mine = [entries[run.id] for run in row.runs.values()]
    verified = [e for e in mine if e.level]
    weakest = min((e.level for e in verified), key=LEVELS.index, default="")
    state = "not verified" if not verified else WORDS[weakest] if len(verified) == len(mine) else (
        f"{len(verified)} of {len(mine)} runs {WORDS[weakest]}")
    about = mine[0].run.record["method"] if mine else {}
    return {"method": row.method, "summary": about.get("summary", ""), "paper": about.get("paper", ""), "n": row.n,
            "failed": row.failed, "best": row.best, "reference": row.reference, "state": state,
            "mark": "full" if mine and len(verified) == len(mine) else "part" if verified else "none",
            "cells": [cell_text(row, name) for name in group.metrics], "entries": mine}

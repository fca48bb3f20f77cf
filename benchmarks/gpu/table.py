"""The table of the GPU figures, made from their JSONs alone:  python benchmarks/gpu/table.py results/gpu > README.md"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ORDER = ("learning", "streams", "operators", "seeds", "repeat", "gpu_tests")


def cell(value: Any) -> str:
    """A value as the table shows it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return str(value).replace("|", "\\|")


def tables(rows: list[dict[str, Any]]) -> list[str]:
    """Rows of the same kind (they start with the same column) under one head; columns in order of arrival."""
    lines: list[str] = []
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(next(iter(row)), []).append(row)
    for kind in kinds.values():
        columns = list(dict.fromkeys(c for row in kind for c in row))
        lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(cell(row[c]) if c in row else "" for c in columns) + " |" for row in kind]
        lines.append("")
    return lines


def section(part: dict[str, Any]) -> list[str]:
    """What a part says: its name, what it is about, the machine, its rows, what was left out, what was noted by hand."""
    facts = ", ".join(f"{k} {cell(v)}" for k, v in part["machine"].items() if k != "rehearsal")
    lines = [f"## {part['part']}", "", *(["**A rehearsal without a GPU: its times say nothing.**", ""]
                                         if part["machine"]["rehearsal"] else []), part["about"], "", facts, ""]
    lines += tables(part["rows"])
    said = [f"- left out: {s}" for s in part["skipped"]] + [f"- {s}" for s in part.get("notes", [])]
    return lines + said + ([""] if said else [])


def page(folder: Path) -> str:
    """The whole page."""
    parts = [json.loads(f.read_text(encoding="utf-8")) for f in sorted(folder.glob("*.json"))]
    parts.sort(key=lambda p: ORDER.index(p["part"]) if p["part"] in ORDER else len(ORDER))
    lines = ["# GPU figures", "", "    make gpu", "",
             "Written by `benchmarks/gpu/run.sh`; this page is made from the JSONs beside it by",
             "`benchmarks/gpu/table.py`. Ratios above 1 say that ours is faster.", ""]
    for part in parts:
        lines += section(part)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(page(Path(sys.argv[1])))

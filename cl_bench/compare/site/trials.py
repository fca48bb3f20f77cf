"""One page of a search for settings: every trial, beside the freshly seeded runs of what it chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...numbers.metrics import all_metrics
from ...records.results import Run, write_atomically
from ..comparison import compare
from ..tables import cell_text
from . import frames

__all__ = ["trials_page"]


def trials_page(told: Mapping[str, Any], runs: Sequence[Run], out: Path) -> Path:
    """Write the page of the search ``told`` (a record's ``tuning``) and the final ``runs`` to the file ``out``."""
    (group,) = compare(runs, by="fingerprint").groups
    row, known = group.rows[0], all_metrics()
    names = list(told["space"])
    trials = [{"number": t["number"], "settings": [_short(t["settings"].get(n, "")) for n in names], "state": t["state"],
               "value": _short(t["value"]), "why": t["why"],
               "chosen": t["value"] is not None and t["settings"] == told["chosen"]} for t in told["trials"]]
    trials.sort(key=lambda t: (t["value"] == "–", -float(t["value"]) if t["value"] != "–" else 0.0, t["number"]))
    shown = [(known[n].header, cell_text(row, n)) for n in group.metrics]
    text = frames().get_template("trials.html").render(
        told=told, names=names, trials=trials, shown=shown, method=row.method, seeds=[run.seed for run in runs],
        title=f"search {told['search']}", group=group)
    write_atomically(out, text.encode())
    return out


def _short(value: Any) -> str:
    return "–" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)

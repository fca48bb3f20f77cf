"""Renders the page: templates, chart library and data inlined into one file that needs no server and no network."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...records.results import Run, plain, write_atomically
from ..comparison import Comparison, compare
from ..places import hide_places, hide_places_in_json
from .payload import payload

__all__ = ["data_json", "html_of", "render"]

TEMPLATES = Path(__file__).parent / "templates"
STYLES = ("base.css", "views.css")
SCRIPTS = ("core.js", "charts.js", "leaderboard.js", "matrices.js", "curves.js", "cost.js", "tests.js", "aggregates.js",
           "runs.js", "evidence.js", "duel.js", "sweep.js", "saving.js", "visit.js", "app.js")


@lru_cache(maxsize=1)
def _chart_library() -> str:
    import plotly.offline

    return str(plotly.offline.get_plotlyjs())


def data_json(data: dict[str, Any]) -> str:
    """JSON that can stand inside a script element: no character that HTML or an old JavaScript parser could read as an
    end of it, and no place of this machine."""
    text = hide_places_in_json(_dumped(data))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _dumped(data: Any) -> str:
    try:  # most of it is plain already, and making it so would walk through every number of it
        return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError):
        return json.dumps(plain(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def html_of(comparison: Comparison | str, title: str = "cl-bench", live: bool = False,
            beside: Path | None = None, pictures: dict[str, Any] | None = None) -> str:
    """The page as text, of a comparison or of its data as :func:`data_json` writes them; ``live``: it is served and follows
    its folder; ``beside``: the folder of the file that it becomes, below which it finds records. Every name in it is data:
    nothing a run is called can become markup or script."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def inline(name: str) -> str:
        return (TEMPLATES / name).read_text(encoding="utf-8")

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html").render(
        title=hide_places(title), live=live, styles=Markup("\n".join(map(inline, STYLES))),
        library=Markup(_chart_library()), scripts=Markup("\n".join(map(inline, SCRIPTS))),
        data=Markup(comparison if isinstance(comparison, str) else data_json(
            payload(comparison, title, beside=beside, pictures=pictures))))


def render(runs: Iterable[Run] | Comparison, out: str | Path, title: str = "cl-bench", *, by: str = "scenario",
           mix: bool = False, pictures: dict[str, Any] | None = None) -> Path:
    """Write the page of ``runs`` (see :func:`cl_bench.compare.comparison.compare` for ``by`` and ``mix``) to the file ``out``.
    ``pictures``: of lost images, per table; none is embedded without being asked for.

    Raises UserError for no runs, for protocols that cannot stand in one table, and where ``out`` cannot be written.
    """
    comparison = runs if isinstance(runs, Comparison) else compare(runs, by=by, mix=mix)
    out = Path(out)
    text = html_of(comparison, title, beside=out.parent, pictures=pictures)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, text.encode())
    except OSError as error:
        raise UserError(f"Cannot write {out} ({error.strerror}): choose another place.") from error
    return out

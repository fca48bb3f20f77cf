"""Figures for papers, from records alone: SVG, PDF and PNG at the width of a column, and pgfplots for LaTeX.

The numbers are those of the page: means over runs with 95 % t-intervals. A caption carries what a reader must know: the
protocol, n and the intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import UserError
from ..numbers.metrics import all_metrics
from ..records.results import write_atomically
from .comparison import Comparison, Group
from .dashboard.curves import learn_curves, stream_curves
from .places import hide_places
from .sheets import label_of, tex
from .style import LIGHT, short_names, slots

__all__ = ["KINDS", "WIDTHS", "Drawing", "caption", "draw", "drawing"]

KINDS = {"forgetting": "forgetting after each experience", "anytime": "average accuracy after each experience",
         "stream": "online error per domain of a test-time stream", "balance": "stability against plasticity",
         "ranking": "the leading metric of every method"}
TESTED = {"anytime": "average_incremental_accuracy", "stream": "mean_error", "balance": "backward_transfer"}
WIDTHS = (85, 178)
ENDINGS = (".pdf", ".svg", ".png", ".tex")
DASHES = ("solid", "dashed", "dashdotted")
MARKERS = (("o", "*"), ("s", "square*"), ("D", "diamond*"), ("^", "triangle*"), ("v", "triangle*"), ("p", "pentagon*"))


@dataclass
class Line:
    """One method: ``y`` with ends ``low`` and ``high`` at ``x`` (None: not measured)."""

    name: str
    bound: bool
    slot: int
    x: list[float | None]
    y: list[float | None]
    low: list[float | None]
    high: list[float | None]

    @property
    def color(self) -> str:
        return ("#4F575F", "#757D86", "#23282E")[self.slot % 3] if self.bound else LIGHT[self.slot % len(LIGHT)]


@dataclass
class Drawing:
    """What a figure shows: lines over named ticks, or points (``joined`` False)."""

    kind: str
    title: str
    caption: str
    x_title: str
    y_title: str
    lines: list[Line]
    ticks: list[str] = field(default_factory=list)
    joined: bool = True


def drawing(comparison: Comparison, kind: str, scenario: str | None = None, methods: Sequence[str] = (),
            since: str = "best") -> Drawing:
    """The figure ``kind`` of one table. ``scenario``: which, where there are several; ``methods``: names or labels to show.

    Raises UserError for an unknown kind, scenario or method, and where nothing of the kind was measured.
    """
    if kind not in KINDS:
        raise UserError(f"there is no figure {kind!r}; there are {', '.join(KINDS)}.")
    groups = [g for g in comparison.groups if scenario in (None, g.scenario, g.title)]
    fitting = [g for g in groups if _has(g, kind)]
    if not groups:
        raise UserError(f"no run is of {scenario}; there are {', '.join(g.title for g in comparison.groups)}.")
    if not fitting:
        raise UserError(f"no run here has what the figure {kind!r} shows ({KINDS[kind]}).")
    if len(fitting) > 1:
        raise UserError(f"say which scenario the figure is of, with --scenario: {', '.join(g.title for g in fitting)}.")
    group = fitting[0]
    known = {row.method for row in group.rows} | {row.method.split("(")[0] for row in group.rows}
    if unknown := [m for m in methods if m not in known]:
        raise UserError(f"no run is of {unknown[0]}; there are {', '.join(row.method for row in group.rows)}.")
    chosen = [row for row in group.rows if not methods or row.method in methods or row.method.split("(")[0] in methods]
    named = sorted((bool(row.reference), row.method) for row in group.rows)  # the page's order
    place = slots([(method, bound) for bound, method in named], [range(len(named))])
    style = {method: place[i] for i, (_, method) in enumerate(named)}
    names = dict(zip((r.method for r in chosen), short_names([r.method for r in chosen]), strict=True))
    made = _contents(group, kind, since)
    lines = [Line(names[row.method], bool(row.reference), style[row.method], *made[3](row.method)) for row in chosen]
    lines = [line for line in lines if any(v is not None for v in line.y)]
    if not lines:
        raise UserError(f"nothing that the figure {kind!r} shows was measured for these methods.")
    said = caption(group, kind, [row.method for row in chosen], since)
    for line in lines:
        line.name = hide_places(line.name)
    return Drawing(kind, hide_places(group.title), hide_places(said), made[0], made[1], lines, made[2],
                   kind not in ("balance", "ranking"))


def _has(group: Group, kind: str) -> bool:
    return bool(kind == "ranking" or (stream_curves(group) if kind == "stream" else learn_curves(group)))


def _contents(group: Group, kind: str, since: str) -> tuple[str, str, list[str], Any]:
    """Titles of the axes, ticks, and a function from a method to (x, y, low, high)."""
    if kind == "ranking":
        metric, order = all_metrics()[group.primary], [row.method for row in group.rows]
        cells = {row.method: row.cells[group.primary] for row in group.rows}

        def ranked(method: str) -> tuple[list[Any], ...]:
            c = cells[method]
            return tuple([_known(v)] for v in (order.index(method), c.mean, c.low, c.high))

        return "", f"{metric.label} ({metric.unit})", short_names(order), ranked
    curves = stream_curves(group) if kind == "stream" else learn_curves(group)
    assert curves is not None
    entries = curves["methods"]

    def pick(method: str, key: str, inner: str | None = None, start: int = 0) -> tuple[list[Any], ...]:
        if method not in entries:
            return ([], [], [], [])
        bands = entries[method][key] if inner is None else entries[method][key][inner]
        y, low, high = (band[start:] for band in bands)
        return list(range(len(y))), y, low, high

    if kind == "forgetting":
        return "after experience", "forgetting (points)", curves["phases"][1:], lambda m: pick(m, "forgetting", since, 1)
    if kind == "anytime":
        return "after experience", "average accuracy (%)", curves["phases"], lambda m: pick(m, "anytime")
    if kind == "stream":
        ticks = [e["domain"].replace("_", " ") for e in curves["entries"]]
        return "", "online error (%)", ticks, lambda m: pick(m, "error")

    def balance(method: str) -> tuple[list[Any], ...]:
        if method not in entries:
            return ([], [], [], [])
        y, low, high = entries[method]["stability"]
        return entries[method]["plasticity"][0], y, low, high

    return "plasticity: accuracy right after learning (%)", "stability: last accuracy (%)", [], balance


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def caption(group: Group, kind: str, methods: Sequence[str], since: str = "best") -> str:
    """What a figure needs: what it shows, on which protocol, over how many runs, with which intervals and tests."""
    ns = sorted({row.n for row in group.rows if row.method in methods and row.n})
    n = f"n = {ns[0]}" if len(ns) == 1 else f"n = {ns[0]} to {ns[-1]}" if ns else "no finished run"
    note = {"forgetting": {"best": "forgetting", "learned": "forgetting_learned", "best_any": "forgetting_best_any"}.get(since),
            "ranking": group.primary}.get(kind)
    said = f" ({all_metrics()[note].note})" if note else ""
    what = KINDS[kind][0].upper() + KINDS[kind][1:]
    ailing = [sentence for sentence in group.warnings if sentence.split(":")[0] in methods]
    return " ".join([f"{what}{said} on {group.title}, protocol {group.fingerprint}. Means over {n} runs (seed × class order) "
                     "with 95 % t-intervals; grey: bounds, no competitors.", *_tested(group, TESTED.get(kind) or note, methods),
                     *ailing])


def _tested(group: Group, name: str | None, methods: Sequence[str]) -> list[str]:
    """What the tests over runs say of the methods shown, by the metric that the figure is about."""
    places = {row.method: row.standings[name] for row in group.rows if name in row.standings and not row.reference}
    best = next((method for method, place in places.items() if place.best), None)
    tested = sorted((place.p, method) for method, place in places.items() if place.p is not None
                    and math.isfinite(place.p) and method in methods)
    if best is None or not tested:
        return []
    said = ", ".join(f"{method} p = {p:.2g}" for p, method in tested[:8]) + (
        f", {len(tested) - 8} more p ≥ {tested[8][0]:.2g}" if len(tested) > 8 else "")
    assert name is not None
    return [f"Paired sign-flip tests of {all_metrics()[name].label} against {best}, over runs, Holm-corrected: {said}."]


def draw(made: Drawing, path: str | Path, width: float = 85) -> Path:
    """Write a figure, ``width`` in millimetres. Raises UserError for another ending or a place that cannot be written."""
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise UserError(f"figures are written as {', '.join(ENDINGS)}, not {path.suffix or 'a file without ending'!r}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = _pgfplots(made, width).encode() if path.suffix == ".tex" else _matplotlib(made, path.suffix, width)
        write_atomically(path, drawn)
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error.strerror}): choose another place.") from error
    return path


def _matplotlib(made: Drawing, ending: str, width: float) -> bytes:
    import io

    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wide = width / 25.4
    settings = {"font.size": 7, "axes.linewidth": 0.5, "svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "cl-bench",
                "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(wide, max(wide * 0.62, 2.1)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for line in made.lines:
            _plot(axes, made, line)
        if made.ticks:
            few = len(made.ticks) <= 8 and made.kind != "ranking"
            axes.set_xticks(range(len(made.ticks)), made.ticks, rotation=0 if few else 45, ha="center" if few else "right",
                            rotation_mode="anchor")
        if made.kind == "balance":
            low, high = _square(made)
            axes.plot([low, high], [low, high], color="#b9c0c7", linewidth=0.6, linestyle=":", zorder=0)
            axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        low, high = axes.get_ylim()
        if made.kind in ("anytime", "stream"):  # an interval may leave 0 to 100 %, the axis does not
            axes.set_ylim(max(low, -2), min(high, 102))
        axes.set_xlabel(made.x_title)
        axes.set_ylabel(made.y_title)
        axes.grid(axis="both" if made.kind == "balance" else "y", linewidth=0.3, color="#e3e6e9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if made.kind != "ranking":
            axes.legend(frameon=False, fontsize=6.5, loc="upper left", bbox_to_anchor=(1.0, 1.02), handlelength=2.6)
        out = io.BytesIO()
        maker = f"cl-bench {__version__}"
        said = {".pdf": {"Title": made.title, "Subject": made.caption, "Creator": maker, "CreationDate": None},
                ".svg": {"Title": made.title, "Description": made.caption, "Date": None, "Creator": maker},
                ".png": {"Title": made.title, "Description": made.caption}}[ending]
        figure.savefig(out, format=ending[1:], metadata=said, dpi=300)
    return out.getvalue()


def _square(made: Drawing) -> tuple[float, float]:
    values = [v for line in made.lines for v in (*line.x, *line.y) if v is not None]
    air = max(2.0, 0.08 * (max(values) - min(values)))
    return min(values) - air, min(max(values) + air, 102.0)


def _plot(axes: Any, made: Drawing, line: Line) -> None:
    points = [(x, y, lo, hi) for x, y, lo, hi in zip(line.x, line.y, line.low, line.high, strict=True)
              if x is not None and y is not None]
    x, y = [p[0] for p in points], [p[1] for p in points]
    marker = MARKERS[line.slot % len(MARKERS)][0]
    hollow = {"markerfacecolor": "white"} if line.bound else {}
    dash = {"solid": "-", "dashed": "--", "dashdotted": "-."}["dashed" if line.bound else DASHES[line.slot // len(LIGHT) % 3]]
    axes.plot(x, y, color=line.color, linewidth=1, linestyle=dash if made.joined else "", marker=marker, markersize=3,
              label=line.name, **hollow)
    banded = [(x, lo, hi) for x, _, lo, hi in points if lo is not None and hi is not None]
    if made.joined and len(banded) > 1:
        axes.fill_between(*zip(*banded, strict=True), color=line.color, alpha=0.12, linewidth=0)
    elif banded:
        axes.vlines(*zip(*banded, strict=True), color=line.color, linewidth=0.8)


def _pgfplots(made: Drawing, width: float) -> str:
    r"""A ``figure`` for \usepackage{pgfplots} with \pgfplotsset{compat=1.16}."""
    options = [f"width={width:g}mm", f"height={max(0.62 * width, 53):g}mm", f"xlabel={{{tex(made.x_title)}}}",
               f"ylabel={{{tex(made.y_title)}}}", "grid=major", "grid style={gray!25}", "axis lines=left",
               r"label style={font=\footnotesize}", r"tick label style={font=\scriptsize}",
               r"legend style={font=\scriptsize, draw=none, at={(1.02,1)}, anchor=north west}", "legend cell align=left"]
    if made.ticks:
        labels = ",".join(f"{{{tex(t)}}}" for t in made.ticks)
        options += [f"xtick={{{','.join(map(str, range(len(made.ticks))))}}}", f"xticklabels={{{labels}}}"]
        options += ["x tick label style={rotate=45, anchor=east}"] if len(made.ticks) > 8 or made.kind == "ranking" else []
    if made.kind == "balance":
        low, high = _square(made)
        options += [f"xmin={low:.2f}, xmax={high:.2f}, ymin={low:.2f}, ymax={high:.2f}"]
    body = []
    for k, line in enumerate(made.lines):
        color = f"clbench{k}"
        body.append(rf"\definecolor{{{color}}}{{HTML}}{{{line.color[1:]}}}")
    body += [r"\begin{axis}[" + ", ".join(options) + "]"]
    for k, line in enumerate(made.lines):
        dash = "dashed" if line.bound else DASHES[line.slot // len(LIGHT) % 3]
        mark, how = MARKERS[line.slot % len(MARKERS)][1], dash if made.joined else "only marks"
        look = f"clbench{k}, mark={mark}, mark size=1.2pt, {how}"
        rows = [f"({x:g}, {y:.3f}) +- (0, {max((hi or y) - y, y - (lo if lo is not None else y)):.3f})" for x, y, lo, hi in
                zip(line.x, line.y, line.low, line.high, strict=True) if x is not None and y is not None]
        body += [rf"\addplot+[{look}, error bars/.cd, y dir=both, y explicit] coordinates {{{' '.join(rows)}}};",
                 rf"\addlegendentry{{{tex(line.name)}}}"]
    body += [r"\end{axis}"]
    return "\n".join([r"% \usepackage{pgfplots,xcolor} \pgfplotsset{compat=1.16}", r"\begin{figure}[t]", r"\centering",
                      r"\begin{tikzpicture}", *body, r"\end{tikzpicture}", rf"\caption{{{tex(made.caption)}}}",
                      rf"\label{{fig:{label_of(made.title)}-{made.kind}}}", r"\end{figure}", ""])

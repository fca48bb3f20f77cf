"""The figures of :mod:`.figure` as plotly figures, for notebooks."""

from __future__ import annotations

from typing import Any

from ..numbers.matrix import AccuracyMatrix
from .comparison import Comparison
from .figure import drawing

__all__ = ["figure_of", "matrix_figure"]


def figure_of(comparison: Comparison, kind: str, **given: Any) -> Any:
    """A plotly figure of the drawing ``kind``; ``given`` as for :func:`.figure.drawing`."""
    from plotly.graph_objects import Figure, Scatter

    made = drawing(comparison, kind, **given)
    figure = Figure()
    for line in made.lines:
        spread = [None if hi is None or y is None else hi - y for y, hi in zip(line.y, line.high, strict=True)]
        below = [None if lo is None or y is None else y - lo for y, lo in zip(line.y, line.low, strict=True)]
        figure.add_trace(Scatter(
            x=line.x, y=line.y, name=line.name, mode="lines+markers" if made.joined else "markers",
            line={"color": line.color, "dash": "dash" if line.bound else "solid"}, marker={"color": line.color},
            error_y={"type": "data", "symmetric": False, "array": spread, "arrayminus": below, "thickness": 1}))
    figure.update_layout(title=made.title, xaxis_title=made.x_title, yaxis_title=made.y_title, template="plotly_white")
    if made.ticks:
        figure.update_xaxes(tickmode="array", tickvals=list(range(len(made.ticks))), ticktext=made.ticks)
    return figure


def matrix_figure(matrix: AccuracyMatrix, title: str) -> Any:
    """An accuracy matrix as a heat map; cells that were not measured stay empty."""
    from plotly.graph_objects import Figure, Heatmap

    figure = Figure(Heatmap(z=matrix.percent, x=list(matrix.columns), y=list(matrix.rows), zmin=0, zmax=100, colorscale="Blues",
                            texttemplate="%{z:.1f}", hoverongaps=False))
    figure.update_yaxes(autorange="reversed", title="after")
    figure.update_layout(title=f"{title}: accuracy (%)", template="plotly_white")
    return figure

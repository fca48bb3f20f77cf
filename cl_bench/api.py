"""cl-bench from Python and notebooks: run, load, compare.

    import cl_bench

    made = cl_bench.run("split_digits", Mine, seeds=3, method_args={"lr": 1e-3})   # a class typed into a cell works
    made.metrics["forgetting"], made.matrix, made.plot()
    runs = cl_bench.load("runs")
    cl_bench.compare(runs).table()

What comes back shows itself as HTML in a notebook; the records on disk are those of the command line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from html import escape
from operator import add
from pathlib import Path
from typing import Any

import numpy as np

from .compare.comparison import compare as _compare
from .compare.table import Compared, Table
from .errors import UserError
from .numbers.matrix import AccuracyMatrix
from .records.results import Run, RunList, load_all

__all__ = ["Runs", "load", "run"]


class Runs(RunList):
    """Runs in order of their ids; a list, and what can be asked of all of them at once."""

    @property
    def finished(self) -> Runs:
        """Those that ended well."""
        return Runs(r for r in self if r.status == "finished")

    def where(self, **given: Any) -> Runs:
        """The runs whose ``scenario``, ``method`` (label, or name without arguments), ``seed``, ... are those given."""
        def fits(run: Run, key: str, value: Any) -> bool:
            own = getattr(run, key)
            return own == value or (key == "method" and run.record["method"]["name"] == value)

        return Runs(r for r in self if all(fits(r, key, value) for key, value in given.items()))

    @property
    def metrics(self) -> dict[str, float]:
        """Every metric by name: the mean over the runs; NaN where none measured it. Raises UserError for runs of several
        scenarios or methods, whose mean would say nothing."""
        self._one()
        names = dict.fromkeys(name for r in self for name in r.metrics)
        found = {name: [v for r in self if (v := r.metrics.get(name)) is not None] for name in names}
        return {name: float(np.mean(values)) if values else float("nan") for name, values in found.items()}

    @property
    def matrix(self) -> AccuracyMatrix:
        """The accuracy matrix, counts added over the runs (R[i, j] is then the share over all of them)."""
        self._one()
        return reduce(add, (r.matrix for r in self))

    def _one(self) -> None:
        kinds = {(r.scenario, r.backbone, r.fingerprint, r.method) for r in self}
        if len(kinds) != 1:
            raise UserError(f"these are runs of {len(kinds)} methods or protocols: choose with .where(method=...), or ask "
                            "cl_bench.compare(runs)." if kinds else "there is no run here.")

    def compare(self, by: str = "scenario", mix: bool = False) -> Compared:
        """As :func:`cl_bench.compare`."""
        made = _compare(self, by, mix)
        return Compared(made.groups, made.problems)

    def table(self) -> Table:
        """One row per method."""
        return self.compare(by="fingerprint").table()

    def plot(self, kind: str | None = None, **given: Any) -> Any:
        """A plotly figure: ``forgetting``, ``anytime``, ``stream``, ``balance``, ``ranking`` or ``matrix``; by default the
        matrix of one method, the stream, or forgetting of several. ``given``: as for :func:`cl_bench.compare.figure.drawing`.
        """
        from .compare.plotly import figure_of, matrix_figure

        methods = {r.method for r in self}
        kind = kind or ("stream" if all(r.kind == "stream" for r in self) else "matrix" if len(methods) == 1 else "forgetting")
        if kind == "matrix":
            return matrix_figure(self.matrix, f"{self[0].method} on {self[0].scenario}")
        return figure_of(self.compare(by="fingerprint"), kind, **given)

    def _repr_html_(self) -> str:
        if not self:
            return "<p>no runs</p>"
        return f"<p>{len(self)} runs</p>" + self.table()._repr_html_() + "".join(f"<p>{escape(p)}</p>" for p in self.problems)


def load(folders: str | Path | Iterable[str | Path] = "runs") -> Runs:
    """Every run in or below the folders. What cannot be read is a sentence in ``.problems``; a path that does not exist
    raises UserError."""
    found = load_all(folders)
    return Runs(found, found.problems)


def run(scenario: str | type, method: str | type, *, seeds: int | Sequence[int] = 1,
        scenario_args: Mapping[str, Any] | None = None, method_args: Mapping[str, Any] | None = None,
        backbone: str | type | None = None, backbone_args: Mapping[str, Any] | None = None, runs: str | Path = "runs",
        **options: Any) -> Runs:
    """Run a method on a scenario and return the runs, one per seed, recorded in the folder ``runs``.

    scenario, method, backbone: registered names, ``path/to/file.py:Class``, or classes, those of a notebook's cell among
    them. seeds: how many (0, 1, ...), or which. options: as on the command line (``device="cpu"``, ``threads=1``,
    ``checkpoint=False``, ...).

    Raises:
        UserError: before any work, for anything that does not fit.
    """
    from .command.config import parse, plan_from
    from .command.processes import execute

    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not chosen:
        raise UserError("seeds: give how many runs, 1 or more, or a list of seeds.")
    argv: list[str] = []
    for root, target, args in (("scenario", scenario, scenario_args), ("method", method, method_args),
                               ("backbone", backbone, backbone_args)):
        if target is not None:
            argv += [f"--{root}", target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}"]
        argv += [word for key, value in (args or {}).items() for word in (f"--{root}.{key}", _text(value))]
    argv += [word for key, value in options.items() for word in (f"--{key}", _text(value))]
    plans = [plan_from(parse([*argv, "--seed", str(seed)])) for seed in chosen]  # every mistake shows before the first run
    return Runs(r for plan in plans for r in load_all(execute(plan, Path(runs))))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)



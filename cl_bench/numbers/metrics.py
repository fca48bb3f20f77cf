"""Every metric in one table: its name, unit, direction, what it needs and how it follows from a record.

A metric is a function of (accuracy matrix, stream, record), or a place in the record where the engine counted it.
Runs, tables, the page and the exports all walk :func:`all_metrics`; more metrics come in by the entry point group
``cl_bench.metrics``, whose entries name a :class:`Metric` or a list of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..errors import UserError, told
from ..registry import GROUPS, entries
from .chance import learned_anything
from .matrix import AccuracyMatrix, Stream

__all__ = ["BUILT_IN", "COST", "KINDS", "Metric", "all_metrics", "dig", "metrics_of"]

Function = Callable[[AccuracyMatrix, Stream, Mapping[str, Any]], float]
KINDS = ("learn", "stream", "deployed")
LEARNS, STREAMS = ("learn", "deployed"), ("stream", "deployed")


def dig(record: Mapping[str, Any], *keys: str) -> float | None:
    """The number at a place in a record (``"-1"``: the last of a list); None where there is none."""
    value: Any = record
    for key in keys:
        if key == "-1":
            value = value[-1] if isinstance(value, list) and value else None
        else:
            value = value.get(key) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


@dataclass(frozen=True)
class Metric:
    """One number of a run.

    name: its key in ``run.json``'s ``metrics``. label, unit, note: how people read it; the note is its definition.
    higher: True where more is better, False where less is, None for neither. of: the function that computes it, in
    ``unit`` times ``scale``; a value that is not finite means "not measured". paths: instead of a function, the places
    in the record whose sum it is. needs: when it is defined: ``learning`` (a matrix with rows of learning), ``source``
    (the clean source's matrix of a test-time stream), ``stream`` (entries), ``learned`` (the model was better than chance
    right after learning: else there is nothing to forget, and the value is NaN), or the dotted place of anything else that
    the record must hold, such as ``unlearning.forget_set``. family: groups it with its kin. decimals: as printed. scale:
    divides the recorded value into ``unit``. shown: the kinds of runs (learn, stream, deployed) whose tables have it
    as a column from the start. ranks: whether tables may be sorted by it from the start; the first measured one is.
    timed: ``wall`` for time by the clock, which depends on what else a machine does, ``busy`` for processor or GPU time.
    """

    name: str
    label: str
    unit: str
    higher: bool | None
    of: Function | None = None
    needs: tuple[str, ...] = ()
    family: str = "other"
    note: str = ""
    decimals: int = 2
    scale: float = 1.0
    paths: tuple[tuple[str, ...], ...] = ()
    shown: tuple[str, ...] = ()
    ranks: bool = False
    timed: str = ""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"a metric's name is a word of letters, digits and '_', not {self.name!r}")
        if (self.of is None) == (not self.paths):
            raise ValueError(f"metric {self.name} needs either a function (of) or places in the record (paths)")
        if wrong := [kind for kind in self.shown if kind not in KINDS]:
            raise ValueError(f"metric {self.name} is shown for {wrong[0]!r}; kinds of runs are {', '.join(KINDS)}")

    @property
    def arrow(self) -> str:
        return {True: "↑", False: "↓", None: ""}[self.higher]

    @property
    def header(self) -> str:
        """Label, unit and direction: ``average accuracy (%) ↑``."""
        return f"{self.label} ({self.unit}) {self.arrow}".strip()

    def text(self, value: float | None) -> str:
        """The value as every table and the page print it; an en dash where there is none."""
        return "–" if value is None or not math.isfinite(value) else f"{value:.{self.decimals}f}".replace("-", "−")

    def defined(self, matrix: AccuracyMatrix, stream: Stream, record: Mapping[str, Any]) -> bool:
        """Whether the record holds what the metric needs."""
        kind = str((record.get("scenario") or {}).get("kind", "learn"))
        have = {"learning": kind != "stream" and bool(matrix.rows), "stream": len(stream) > 0,
                "source": kind == "stream" and matrix.total.size > 0, "learned": True}
        return all(have[need] if need in have else _holds(record, need) for need in self.needs)

    def read(self, metrics: Mapping[str, float | None], record: Mapping[str, Any]) -> float:
        """The value in ``unit`` from a run's metrics and record; NaN where it was not measured."""
        found = [dig(record, *path) for path in self.paths] if self.paths else [metrics.get(self.name)]
        known = [value for value in found if value is not None]
        return sum(known) / self.scale if known else math.nan


def _holds(record: Mapping[str, Any], place: str) -> bool:
    value: Any = record
    for key in place.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value is not None


def _learned(name: str, label: str, unit: str, higher: bool, of: Callable[[AccuracyMatrix], float], family: str, note: str,
             shown: tuple[str, ...] = (), ranks: bool = False) -> Metric:
    needs = ("learning", "learned") if name.startswith(("forgetting", "backward_transfer")) else ("learning",)
    return Metric(name, label, unit, higher, lambda m, s, r: of(m), needs, family, note, shown=shown, ranks=ranks)


def _streamed(name: str, label: str, unit: str, of: Callable[[Stream], float], family: str, note: str,
              shown: tuple[str, ...] = (), ranks: bool = False, decimals: int = 2) -> Metric:
    return Metric(name, label, unit, False, lambda m, s, r: of(s), ("stream",), family, note, decimals, shown=shown,
                  ranks=ranks)


def _source(name: str, label: str, unit: str, of: Callable[[AccuracyMatrix], float], note: str,
            shown: tuple[str, ...] = ()) -> Metric:
    return Metric(name, label, unit, False, lambda m, s, r: of(m), ("source",), "source", note, shown=shown)


def _cost(name: str, label: str, unit: str, note: str, *paths: tuple[str, ...], scale: float = 1.0, decimals: int = 1,
          shown: bool = True, timed: str = "") -> Metric:
    return Metric(name, label, unit, False, None, (), "cost", note, decimals, scale, paths, KINDS if shown else (), timed=timed)


def _error(matrix: AccuracyMatrix, row: int) -> float:
    """Error in percent on the clean source (the first column) at a row."""
    return 100 - float(matrix.percent[row, 0])


def _error_after(matrix: AccuracyMatrix) -> float:
    return _error(matrix, -1) if len(matrix.rows) > 1 else math.nan


BUILT_IN: tuple[Metric, ...] = (
    _learned("average_accuracy", "average accuracy", "%", True, lambda m: m.average_accuracy(), "accuracy",
             "A_T: after the last experience, mean over test sets", LEARNS, ranks=True),
    _learned("average_accuracy_pooled", "average accuracy, pooled", "%", True, lambda m: m.average_accuracy(pooled=True),
             "accuracy", "A_T over images instead of test sets (PILOT)"),
    _learned("average_incremental_accuracy", "average incremental accuracy", "%", True,
             lambda m: m.average_incremental_accuracy(), "accuracy", "mean of A_t over all experiences", ("learn",)),
    _learned("average_incremental_accuracy_pooled", "average incremental accuracy, pooled", "%", True,
             lambda m: m.average_incremental_accuracy(pooled=True), "accuracy",
             "mean of A_t over all experiences, over images instead of test sets (PILOT)"),
    _learned("anytime_accuracy", "anytime accuracy", "%", True, lambda m: m.anytime(), "accuracy",
             "mean of A_t over every measured row since the first learning"),
    _learned("last_accuracy", "last", "%", True, lambda m: m.last(), "accuracy",
             "last row over all test sets, learned or not (ZSCL)"),
    _learned("average_all", "average over all cells", "%", True, lambda m: m.average_all(), "accuracy",
             "mean of all cells, the row before any learning left out (ZSCL)"),
    _learned("forgetting", "forgetting", "points", False, lambda m: m.forgetting("best"), "forgetting",
             "best earlier minus last accuracy, mean over earlier test sets (Chaudhry et al. 2018)", LEARNS),
    _learned("forgetting_learned", "forgetting since learned", "points", False, lambda m: m.forgetting("learned"),
             "forgetting", "accuracy right after learning minus last (Avalanche)"),
    _learned("forgetting_best_any", "forgetting, best incl. last", "points", False, lambda m: m.forgetting("best_any"),
             "forgetting", "best accuracy including the last minus last (Mammoth, PILOT)"),
    _learned("forgetting_libcontinual", "forgetting, LibContinual", "points", False, lambda m: m.forgetting("libcontinual"),
             "forgetting", "just-learned minus last, the last two test sets left out but divided by T - 1 (LibContinual)"),
    _learned("backward_transfer", "backward transfer", "points", True, lambda m: m.backward_transfer(), "transfer",
             "last minus just-learned accuracy (Lopez-Paz & Ranzato 2017)", LEARNS),
    _learned("backward_transfer_positive", "backward transfer, positive", "points", True,
             lambda m: m.backward_transfer("positive"), "transfer", "its positive part per test set"),
    _learned("backward_transfer_all_pairs", "backward transfer, all pairs", "points", True,
             lambda m: m.backward_transfer("all_pairs"), "transfer", "over all later rows, not only the last (Continuum)"),
    _learned("forward_transfer", "forward transfer", "points", True, lambda m: m.forward_transfer(), "transfer",
             "accuracy before learning minus the one before any learning (GEM)"),
    _learned("plasticity", "plasticity", "%", True, lambda m: m.plasticity(), "accuracy",
             "accuracy right after learning, mean over test sets"),
    _learned("stability", "stability", "%", True, lambda m: m.stability(), "accuracy", "last accuracy on earlier test sets"),
    _learned("transfer", "transfer", "%", True, lambda m: m.transfer(), "transfer",
             "accuracy on test sets not learned yet, mean of column means (ZSCL)"),
    _streamed("mean_error", "mean error", "%", lambda s: s.mean_error(), "stream",
              "online error, unweighted mean over domains", STREAMS, ranks=True),
    _streamed("pooled_error", "pooled error", "%", lambda s: s.pooled_error(), "stream", "online error over all images"),
    _source("source_error_before", "source error before", "%", lambda m: _error(m, 0),
            "clean source test set before the stream"),
    _source("source_error_after", "source error after", "%", _error_after, "clean source test set after the stream"),
    _source("source_forgetting", "source forgetting", "points", lambda m: _error_after(m) - _error(m, 0),
            "clean source error after the stream minus before", STREAMS),
    _streamed("drift", "drift", "points", lambda s: s.drift(), "stream", "error at the last visit minus error at the first",
              ("stream",)),
    _streamed("ece", "ECE", "%", lambda s: s.ece(), "calibration", "expected calibration error, 15 equal-width bins", STREAMS),
    _streamed("collapsed_domains", "collapsed domains", "domains", lambda s: float(sum(e.collapsed for e in s.entries)),
              "health", "domains in which one class takes 95 % of the answers", decimals=0),
    _streamed("nonfinite", "non-finite answers", "images", lambda s: float(sum(e.nonfinite for e in s.entries)), "health",
              "answers that were not finite; they count as wrong", decimals=0),
    _streamed("missed", "missed", "images", lambda s: float(sum(e.missed for e in s.entries)), "health",
              "images that came too fast and were answered without adapting", decimals=0),
    _cost("passes", "passes", "k images", "images through the network, forward and backward passes each counted",
          ("cost", "forward_images"), ("cost", "backward_images"), scale=1e3),
    _cost("busy", "busy time", "s", "processor time (on a GPU: the GPU's) of learning and adapting",
          ("cost", "busy_seconds", "learn"), ("cost", "busy_seconds", "adapt"), timed="busy"),
    _cost("busy_learn", "busy learning", "s", "processor or GPU time of learning alone", ("cost", "busy_seconds", "learn"),
          timed="busy", shown=False),
    _cost("busy_adapt", "busy adapting", "s", "processor or GPU time of adapting and answering in the stream",
          ("cost", "busy_seconds", "adapt"), timed="busy", shown=False),
    _cost("busy_evaluate", "busy evaluating", "s", "processor or GPU time of measuring", ("cost", "busy_seconds", "evaluate"),
          timed="busy", shown=False),
    _cost("seconds", "wall time", "s", "by the clock, learning and adapting, whatever else the machine did meanwhile",
          ("cost", "seconds", "learn"), ("cost", "seconds", "adapt"), timed="wall", shown=False),
    _cost("seconds_total", "total wall time", "s", "by the clock, the whole run", ("cost", "seconds", "total"), timed="wall",
          shown=False),
    _cost("forward_images", "forward", "k images", "images through the network, learning and adapting",
          ("cost", "forward_images"), scale=1e3, shown=False),
    _cost("backward_images", "backward", "k images", "images through back-propagation", ("cost", "backward_images"),
          scale=1e3, shown=False),
    _cost("trainable", "trainable", "k params", "parameters that learning or adapting updates",
          ("cost", "parameters", "trainable"), scale=1e3),
    _cost("memory", "memory", "MiB", "peak of the process (on a GPU: of the GPU) above what it held at the start of the run",
          ("cost", "memory_bytes"), scale=2 ** 20, decimals=0),
    _cost("state", "method state", "MiB", "what the method itself keeps at the end: weights, memories, optimizers",
          ("cost", "growth", "-1", "state_bytes"), scale=2 ** 20, shown=False),
    _cost("peak_memory", "peak memory of the process", "MiB", "everything in the process, libraries included",
          ("cost", "peak_memory_bytes"), scale=2 ** 20, decimals=0, shown=False),
)
COST = tuple(m.name for m in BUILT_IN if m.family == "cost")


@cache
def _plugged_in() -> dict[str, tuple[Metric, str]]:
    """Metrics of other distributions, by name, with the distribution that brings each."""
    found: dict[str, tuple[Metric, str]] = {}
    known = {metric.name for metric in BUILT_IN}
    for entry in entries(GROUPS["metrics"]).values():
        try:
            loaded = entry.load()
        except Exception as fault:
            raise UserError(f"the metric {entry.name} of {entry.distribution} cannot be imported: {told(fault)}; mend or "
                            "uninstall it.") from fault
        for metric in loaded if isinstance(loaded, Iterable) else (loaded,):
            if not isinstance(metric, Metric):
                raise UserError(f"{entry.distribution} registers {entry.name} = {entry.target} in cl_bench.metrics, which is a "
                                f"{type(metric).__name__} and no cl_bench.Metric.")
            if metric.name in known:
                raise UserError(f"the metric {metric.name!r} of {entry.distribution} has the name of another; rename it.")
            known.add(metric.name)
            found[metric.name] = metric, entry.distribution
    return found


@cache
def all_metrics() -> dict[str, Metric]:
    """Every metric by its name: the built-in ones, then those of other distributions; costs last.

    Raises:
        UserError: for an entry of ``cl_bench.metrics`` that cannot be imported, is no metric, or takes another's name.
    """
    every = [*BUILT_IN, *(metric for metric, _ in _plugged_in().values())]
    return {metric.name: metric for metric in sorted(every, key=lambda m: m.family == "cost")}


def metrics_of(matrix: AccuracyMatrix, stream: Stream, record: Mapping[str, Any],
               but: Iterable[str] = ()) -> dict[str, float | None]:
    """What ``run.json`` holds as ``metrics``: every metric whose needs the run meets, None where it is not defined.

    record: the record as far as it is written; ``scenario.kind`` says what kind of run it is, and metrics of other
    kinds of steps find their counts in it. but: names that are known already and are left out.
    """
    skip, out, learned = set(but), dict[str, float | None](), None
    for name, metric in all_metrics().items():
        if metric.of is None or name in skip or not metric.defined(matrix, stream, record):
            continue
        if "learned" in metric.needs and learned is None:
            learned = learned_anything(matrix, record)
        try:
            value = float(metric.of(matrix, stream, record)) if learned or "learned" not in metric.needs else math.nan
        except Exception as fault:
            if name not in _plugged_in():
                raise
            raise UserError(f"the metric {name} of {_plugged_in()[name][1]} cannot be computed: {told(fault)}.") from fault
        out[name] = value if math.isfinite(value) else None
    return out

"""What a suite will take, told before it starts: time and disk, from earlier records of the parts or from a short probe."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ..records.results import plain
from .suites import Suite

__all__ = ["Expected", "expected"]

PROBE = 8  # images that pass once forward and backward
RECORD, PREDICTION = 60_000, 4  # bytes of a record without predictions, and of one


@dataclass(frozen=True)
class Expected:
    """What is to come.

    Attributes:
        rows: what is run with several seeds or orders: (label, runs, how many of them are still to do).
        seconds: of all runs to do, one after another; None where nothing could be told.
        probed: some of the time comes from a probe, not from records.
        disk: bytes of the records to come; ``passing``: of the checkpoints that lie beside them for a while.
        at_once: how many runs go on at the same time; 0: the launcher's own number.
    """

    name: str
    rows: tuple[tuple[str, int, int], ...]
    seconds: float | None
    probed: bool
    disk: float
    passing: float
    at_once: int

    @property
    def runs(self) -> int:
        return sum(n for _, n, _ in self.rows)

    @property
    def left(self) -> int:
        return sum(n for _, _, n in self.rows)

    def lines(self, most: int = 12) -> list[str]:
        """The expansion and what it takes, as a terminal shows it."""
        shown = [f"  {label}" + (f" × {n}" if n > 1 else "") for label, n, _ in self.rows[:most]]
        if len(self.rows) > most:
            shown.append(f"  ... and {len(self.rows) - most:,} more of {len(self.rows):,} rows")
        done = f", {self.runs - self.left:,} of them not to be run" if self.left < self.runs else ""
        takes = ""
        if self.left:
            takes = f"; about {duration(self.seconds / max(1, self.at_once))}" if self.seconds is not None else "; time unknown"
            if self.seconds is not None:
                takes += (f" ({self.at_once} at once)" if self.at_once > 1 else " of one process" if not self.at_once else "")
                takes += " by a short probe" if self.probed else " by earlier records"
            takes += f", {size(self.disk)} of records" + (f", {size(self.passing)} of checkpoints in passing"
                                                          if self.passing > 1e6 else "")
        return [f"{self.name or 'runs'}: {self.runs:,} runs{done}{takes}", *shown]


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``, ``4 days``."""
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{1 if seconds < 10 * length and unit != 'min' else 0}f} {unit}"
    return f"{max(1, round(seconds))} s"


def size(count: float) -> str:
    """Bytes to read."""
    for unit, length in (("GB", 1e9), ("MB", 1e6)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{max(1, round(count / 1e3))} kB"


def expected(suite: Suite, configs: Sequence[Mapping[str, Any]], todo: Sequence[int], earlier: Any, rehearsal: Any,
             at_once: int) -> Expected:
    """What the runs ``todo`` will take.

    Args:
        earlier: what the folder of runs holds (:class:`.earlier.Earlier`).
        rehearsal: knows the sizes of the scenarios (:class:`.rehearsal.Rehearsal`).
    """
    rows: dict[str, list[int]] = {}
    for job in suite.jobs:
        rows.setdefault(_row(job), [0, 0])[0] += 1
    for k in todo:
        rows[_row(suite.jobs[k])][1] += 1
    known, probe = _Known(earlier.every), _Probe(rehearsal)
    times: list[float | None] = []
    disk = 0.0
    for k in todo:
        seconds, written = known.of(configs[k])
        times.append(seconds if seconds is not None else probe.seconds(configs[k]))
        disk += written if written is not None else probe.disk(configs[k])
    told = [t for t in times if t is not None]
    seconds = sum(told) + fmean(told) * (len(times) - len(told)) if told else None
    return Expected(suite.name, tuple((label, n, left) for label, (n, left) in rows.items()), seconds, probe.used, disk,
                    probe.checkpoint * max(1, at_once), at_once)


def _row(job: Any) -> str:
    return str(job.label.replace(f" seed {job.config.get('seed')}", "", 1))


class _Known:
    """Seconds and bytes of earlier runs of the same parts: with the same options, else of the same classes."""

    def __init__(self, runs: Iterable[Any]) -> None:
        self.found: dict[str, list[Any]] = {}
        for run in runs:
            if run.status == "finished":
                for key in _keys(run.record.get("config") or {}):
                    self.found.setdefault(key, []).append(run)
        self.kept: dict[str, tuple[float, float]] = {}

    def of(self, config: Mapping[str, Any]) -> tuple[float | None, float | None]:
        for key in _keys(config):
            if key in self.kept:
                return self.kept[key]
            if (runs := self.found.get(key, [])[-5:]):
                seconds = [float(((run.record.get("cost") or {}).get("seconds") or {}).get("total") or 0.0) for run in runs]
                self.kept[key] = fmean(seconds), fmean(_bytes(run.folder) for run in runs)
                return self.kept[key]
        return None, None


def _keys(config: Mapping[str, Any]) -> list[str]:
    """From the closest to the loosest; a seed and a class order change no time."""
    parts = [config.get(part) for part in ("scenario", "method", "backbone")]
    if not all(isinstance(part, Mapping) for part in parts):
        return []
    scenario, method, backbone = ({**part, "init_args": {k: v for k, v in (part.get("init_args") or {}).items()  # type: ignore
                                                         if k != "order"}} for part in parts)
    compute = {k: v for k, v in (config.get("compute") or {}).items() if k in ("device", "precision", "threads")}
    steps = {k: v for k, v in method["init_args"].items() if k in ("epochs", "batch_size")}
    return [json.dumps(plain(key), sort_keys=True) for key in (
        [scenario, method, backbone, compute], [scenario, method["class_path"], steps, backbone, compute])]


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


class _Probe:
    """Time of a run from its passes: how many images go forward and backward, times one short pass of the backbone here."""

    def __init__(self, rehearsal: Any) -> None:
        self.rehearsal = rehearsal
        self.passes: dict[str, tuple[float, float] | None] = {}
        self.sources: set[str] = set()  # trained once, and kept for the other runs
        self.used = False
        self.checkpoint = 0.0  # bytes of one

    def seconds(self, config: Mapping[str, Any]) -> float | None:
        from .parts import class_of

        sizes, args = self.rehearsal.size(config), config["method"].get("init_args") or {}
        taken = self._pass(config)
        if taken is None:
            return None
        forward, both = taken
        method = class_of(config["method"]["class_path"])
        epochs = args.get("epochs", 1)
        self.used = True
        learned = both * sizes.learned * (epochs if isinstance(epochs, int) else 1)
        trained = json.dumps(plain([config[k] for k in ("scenario", "backbone", "source", "seed")]), sort_keys=True)
        source = 0.0 if trained in self.sources else both * sizes.source * int((config.get("source") or {}).get("epochs") or 0)
        self.sources.add(trained)
        streamed = (both if method.adapts else forward) * sizes.streamed
        return 1.0 + learned + source + streamed + forward * sizes.measured

    def disk(self, config: Mapping[str, Any]) -> float:
        sizes = self.rehearsal.size(config)
        return RECORD + PREDICTION * (sizes.measured + 2 * sizes.streamed)

    def _pass(self, config: Mapping[str, Any]) -> tuple[float, float] | None:
        """Seconds of one image forward, and forward and backward; None where the backbone cannot be asked here."""
        key = json.dumps(plain(config["backbone"]), sort_keys=True)
        if key not in self.passes:
            self.passes[key] = self._timed(config, key)
        return self.passes[key]

    def _timed(self, config: Mapping[str, Any], key: str) -> tuple[float, float] | None:
        import torch

        from ..engine.compute import resolve_device
        from ..errors import UserError
        from .parts import ROOTS, make

        sizes, compute = self.rehearsal.size(config), config.get("compute") or {}
        if sizes.image is None:
            return None
        try:
            device = resolve_device(str(compute.get("device", "auto")))
        except UserError:  # of another machine
            device = torch.device("cpu")
        threads = torch.get_num_threads()
        backbone = make(config["backbone"], ROOTS["backbone"]).to(device).train()
        self.checkpoint = max(self.checkpoint, 2.0 * sum(p.numel() * p.element_size() for p in backbone.parameters()))
        x = torch.zeros(PROBE, *sizes.image, device=device)
        try:
            torch.set_num_threads(int(compute.get("threads") or threads))
            took = []
            for _ in range(2):  # the first warms up
                began = time.perf_counter()
                out = backbone.forward_features(x)
                middle = time.perf_counter()
                out.float().sum().backward()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                took = [(middle - began) / PROBE, (time.perf_counter() - began) / PROBE]
            return took[0], took[1]
        except (RuntimeError, ValueError, AttributeError):  # frozen throughout, or not of one tensor: no probe
            return None
        finally:
            torch.set_num_threads(threads)

"""What is known of a run between two batches: its position, its record, and when to write either down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .. import ranks
from ..errors import UserError
from ..method import Method
from ..numbers.matrix import AccuracyMatrix
from ..numbers.metrics import metrics_of
from ..numbers.stream_metrics import Stream, StreamEntry
from ..records.writer import RunWriter, utc_now
from . import checkpoint
from .compute import resolve_device
from .features import Features
from .fit import FitPosition
from .measure import Scored
from .meter import Meter, held_memory, peak_memory
from .protocol import Plan
from .stream import SegmentPosition, StreamState

__all__ = ["Listener", "Position", "RunState"]

Listener = Callable[[str, Mapping[str, Any]], None]
BEFORE = "before learning"  # the row of the matrix that is measured first, where a method can answer without learning
DEAR = 20  # a checkpoint, or the record, is written where its cost is at most this part of the time since the last one


@dataclass
class Position:
    """How far a run is: all that its future depends on, beside the method itself. Each field is saved and restored.

    Attributes:
        step: steps of the timeline that are done; ``fitted``: the step under way is fitted and not yet measured;
            ``inside``: where its fit or its segment stands.
        in_stream: the method is deployed.
        rows, correct, total: of the accuracy matrix; None = not measured.
        entries: of the stream.
        growth, counts, seconds, busy (processor or GPU seconds), warnings, trainable, forward_images, backward_images: what
            the record says of cost and health.
        stream: what crosses segments.
        predictions: global label ids by evaluation.
        elapsed: seconds of work so far; ``events``: length of the events on disk.
    """

    step: int = 0
    fitted: bool = False
    inside: FitPosition | SegmentPosition | None = None
    in_stream: bool = False
    rows: list[str] = field(default_factory=list)
    correct: list[list[int | None]] = field(default_factory=list)
    total: list[list[int | None]] = field(default_factory=list)
    entries: list[StreamEntry] = field(default_factory=list)
    growth: list[dict[str, Any]] = field(default_factory=list)
    counts: dict[str, int | float] = field(default_factory=lambda: {"optimizer_steps": 0})
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("source", "learn", "adapt", "evaluate"), 0.0))
    busy: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("source", "learn", "adapt", "evaluate"), 0.0))
    warnings: list[str] = field(default_factory=list)
    trainable: int = 0
    forward_images: int = 0
    backward_images: int = 0
    stream: StreamState = field(default_factory=StreamState)
    predictions: dict[str, Tensor] = field(default_factory=dict)
    elapsed: float = 0.0
    events: int = 0


class RunState:
    """A run under way: the plan, where it stands, and the folder that it is written to.

    ``record`` holds what does not change while it runs.
    """

    def __init__(self, plan: Plan, writer: RunWriter, record: dict[str, Any], listen: Listener | None) -> None:
        self.plan, self.writer, self.record, self.listen = plan, writer, record, listen
        self.scenario, self.device = plan.scenario, resolve_device(plan.compute.device)
        self.meter, self.position = Meter(), Position()
        self.features = Features(plan.compute, None, self.meter)
        self.tests = list(plan.scenario.test_sets())
        self._born, self._before = time.perf_counter(), 0.0
        self._clock: tuple[str, float, float] | None = None
        self._held, self._counted = held_memory(), (0, 0)
        self._saved: tuple[float, float] | None = None  # when, and how long it took
        self._wrote = self._born, 0.0  # the record: the same
        self._inside = plan.checkpoint and ranks.size() == 1  # several processes do not stop at the same batch

    # ---------------------------------------------------------------- the record
    @property
    def kind(self) -> str:
        """``learn``, ``stream`` or ``deployed``."""
        return str(self.record["scenario"]["kind"])

    def matrix(self) -> AccuracyMatrix:
        p = self.position
        taught = {e.name: p.rows.index(e.name) for e in self.scenario.experiences() if e.name in p.rows}
        return AccuracyMatrix.from_json({
            "rows": p.rows, "columns": [t.name for t in self.tests], "correct": p.correct, "total": p.total,
            "learned": [taught.get(t.of) for t in self.tests], "before": p.rows[:1] == [BEFORE],
        })

    def write_where_cheap(self) -> None:
        """Bring the record on disk up to date, unless that would cost over a twentieth of the run: a record of a thousand steps
        is a thousand times as long as that of one. Whatever ends a run writes it."""
        last, cost = self._wrote
        if time.perf_counter() - last >= DEAR * cost:
            self.write()

    def write(self, **changes: Any) -> None:
        """Bring the record up to date and on disk."""
        started, p = time.perf_counter(), self._told()
        matrix, stream = self.matrix(), Stream(tuple(p.entries))
        self.record.update(
            matrix=matrix.to_json(), stream=stream.to_json(), warnings=p.warnings,
            cost={
                "seconds": {**p.seconds, "total": p.elapsed},
                "busy_seconds": dict(p.busy), "peak_memory_bytes": peak_memory(),
                "memory_bytes": None if self._held is None else max(0, peak_memory() - self._held),
                "parameters": {"total": p.growth[-1]["parameters"] if p.growth else 0, "trainable": p.trainable},
                "forward_images": p.forward_images, "backward_images": p.backward_images,
                **p.counts, "growth": p.growth,
            },
        )
        self.record["metrics"] = metrics_of(matrix, stream, self.record)
        self.record.update(changes)
        self.writer.write(self.record)
        self._wrote = (now := time.perf_counter()), now - started

    def end(self, status: str, **changes: Any) -> None:
        """The record's last word."""
        self.write(status=status, finished=utc_now(), **changes)

    def event(self, kind: str, *, write: bool = True, tell: bool = True, **facts: Any) -> None:
        """Append an event to the record, and tell whoever listens."""
        if write:
            self.writer.event(kind=kind, t=self.elapsed(), **facts)
        if tell and self.listen is not None:
            self.listen(kind, {"id": self.writer.folder.name, "seed": self.plan.seed, **facts})

    def warn(self, sentence: str) -> None:
        if sentence not in self.position.warnings:
            self.position.warnings.append(sentence)
            self.event("warning", message=sentence)

    def keep(self, key: str, scored: Scored) -> None:
        """The predictions of an evaluation, for the record."""
        if scored.nonfinite:
            self.warn(f"{scored.nonfinite} answers for {key} were not finite; they count as wrong.")
        self.position.predictions[key] = torch.from_numpy(scored.predictions.astype("int32"))

    # ---------------------------------------------------------------- time
    def elapsed(self) -> float:
        """Seconds of work since the run began, a stop in between not counted."""
        return round(self._before + time.perf_counter() - self._born, 4)

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Count what happens inside as seconds of ``name``, also where a checkpoint is written in the middle."""
        self._clock = name, time.perf_counter(), self._busy()
        try:
            yield
        finally:
            self._tick()
            self._clock = None

    def _tick(self) -> None:
        if self._clock is not None:
            name, since, before = self._clock
            now, busy = time.perf_counter(), self._busy()
            self.position.seconds[name] += now - since
            self.position.busy[name] += busy - before
            self._clock = name, now, busy

    def _busy(self) -> float:
        """Seconds of this process's processors; on a GPU, which works beside them, by the clock once it has caught up."""
        if self.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _told(self) -> Position:
        """The position with what is counted elsewhere brought in."""
        self._tick()
        p = self.position
        p.forward_images, p.backward_images = self.meter.forward_images, self.meter.backward_images
        p.elapsed = self.elapsed()
        return p

    def count_all(self) -> None:
        """Bring together what each process counted since the last time; all of them call it at the same step."""
        if ranks.size() > 1:
            meter, (forward, backward) = self.meter, self._counted
            more = ranks.summed([meter.forward_images - forward, meter.backward_images - backward])
            self._counted = forward + int(more[0]), backward + int(more[1])
            meter.forward_images, meter.backward_images = self._counted

    # ---------------------------------------------------------------- checkpoints
    def go_on(self, position: Position) -> None:
        """Stand where a checkpoint stood; what was told after it is taken back."""
        self.position, self._before, self._born = position, position.elapsed, time.perf_counter()
        self.meter.forward_images, self.meter.backward_images = position.forward_images, position.backward_images
        self._counted = position.forward_images, position.backward_images
        self.writer.cut_events(position.events)

    def between(self, method: Method) -> Callable[[Callable[[], Any]], None] | None:
        """What the inside of a step calls between two batches, with a function that tells where it stands."""
        if not self._inside:
            return None

        def pause(where: Callable[[], FitPosition | SegmentPosition]) -> None:
            if self._inside and self._due(self.plan.checkpoint_every):
                try:
                    self._save(method, where())
                except UserError as fault:  # between two steps the method can be written down, or is told there that not
                    self._inside = False
                    self.event("warning", message=f"no checkpoints inside of steps: {fault}")

        return pause

    def save(self, method: Method) -> None:
        """Write a checkpoint between two steps, unless it would cost over a twentieth of the run; in all processes at once."""
        self.count_all()
        if ranks.rank() == 0 and self.plan.checkpoint and (self._saved is None or self._due(0.0)):
            self._save(method, None)

    def _due(self, every: float) -> bool:
        last, cost = (self._born, 0.0) if self._saved is None else self._saved
        return time.perf_counter() - last >= max(every, DEAR * cost)

    def _save(self, method: Method, inside: FitPosition | SegmentPosition | None) -> None:
        started = time.perf_counter()
        position = replace(self._told(), inside=inside, events=self.writer.events_offset())
        checkpoint.save(self.writer.folder / "checkpoint", method, position, identity_of(self.record))
        self._saved = (time.perf_counter(), time.perf_counter() - started)


def identity_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a record that a run must keep to go on; None for what a record lacks."""
    return {"config": record.get("config"), "seed": record.get("seed"), "fingerprint": record.get("fingerprint"),
            "method_source": (record.get("method") or {}).get("source_digest"),
            "cl_bench_source": (record.get("environment") or {}).get("code_digest")}

"""A test stream as it arrives: resets, streams that do not wait, labels that come late, and the score of each domain."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.tensor import labels_of
from ..errors import UserError
from ..heads import columns_of
from ..label_free.sums import UnlabelledSums
from ..method import Method
from ..numbers.stream_metrics import CalibrationBins, StreamEntry, collapsed, top_class_share
from ..scenario import Scenario
from ..types import LabelSpace, TestSet
from .compute import Compute, resolve_device
from .feed import Pool
from .measure import Answers, Ledger, Scored, answer_all
from .meter import Meter
from .seeding import generators, set_generators

__all__ = ["SegmentPosition", "StreamClock", "StreamState", "counters_of", "stream_step"]


# What the record's costs are called: counted by the engine alone.
COUNTED = frozenset({"seconds", "busy_seconds", "peak_memory_bytes", "memory_bytes", "parameters", "forward_images",
                     "backward_images", "growth", "optimizer_steps", "nonfinite_losses"})


def counters_of(method: Method) -> dict[str, int | float]:
    """The method's own counters.

    Raises:
        UserError: where they are no finite numbers by name, or are called like what the engine counts.
    """
    found, name = method.counters(), f"{type(method).__name__}.counters()"
    if not isinstance(found, Mapping):
        raise UserError(f"{name} returned a {type(found).__name__}: it must return numbers by name.")
    for key, value in found.items():
        if key in COUNTED:
            raise UserError(f"{name} counts {key}, which the record counts by itself; use another name.")
        if not isinstance(key, str) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UserError(f"{name} says {key!r}: {value!r}; it must return finite numbers by name.")
    return dict(found)


@dataclass
class StreamState:
    """What crosses the segments of a test stream.

    Attributes:
        busy: slots of a constant-speed stream that the method is still busy for.
        waiting: answered batches whose labels are still to come, (images, labels); a delay can be longer than a segment.
        spent: a reset takes a method's counters back, and the record counts the whole run: what they lost is here.
    """

    busy: float = 0.0
    waiting: deque[tuple[Tensor, Tensor]] = field(default_factory=deque)
    spent: dict[str, int | float] = field(default_factory=dict)

    def lose(self, before: Mapping[str, int | float], after: Mapping[str, int | float]) -> None:
        """Counters went from ``before`` to ``after`` by a reset or a new deployment."""
        for key, value in before.items():
            self.spent[key] = self.spent.get(key, 0) + value - after.get(key, 0)

    def reset(self, method: Method) -> None:
        """The method back to its mark, with its counters kept for the record."""
        before = counters_of(method)
        Method.reset(method)
        self.lose(before, counters_of(method))


@dataclass
class SegmentPosition:
    """Where a segment stands between two batches. The method itself is kept beside it.

    Attributes:
        batch: how many batches were answered.
        answers: what the ledger holds of them, one tensor (rows,) per column.
        sums, probability: of :class:`cl_bench.label_free.sums.UnlabelledSums`.
        generators: states of the global generators.
        seconds: how long it took so far.
    """

    batch: int
    answers: tuple[Tensor, ...]
    sums: Tensor
    probability: Tensor
    generators: dict[str, Any]
    seconds: float


class StreamClock:
    """The engine's side of a stream: it resets, counts what a batch cost, and hands late labels over, between batches.

    A backward pass costs about two forward passes; a batch's own slot is one. Where the method is busy for a slot or
    more, the batch at hand is answered without adapting. Batch t's labels are handed over when batch t + delay has been
    answered, to methods that need them and where the scenario gives them.
    """

    def __init__(self, method: Method, scenario: Scenario, meter: Meter, state: StreamState, labels: Tensor | None) -> None:
        self.method, self.scenario, self.meter, self.state = method, scenario, meter, state
        self.labels = labels if "labels" in type(method).needs else None
        self.speed, self.delay = scenario.stream_speed or 0.0, scenario.label_delay or 0
        self.missing = False
        self._open: tuple[Tensor, Tensor, int, int] | None = None  # arrived, its consequences not drawn yet

    def begin(self, x: Tensor, rows: Tensor) -> None:
        if self.scenario.reset == "batch":
            self.state.reset(self.method)
        self.missing = self.speed > 0 and self.state.busy >= 1
        self._open = x, rows, self.meter.forward_images, self.meter.backward_images

    def settle(self) -> None:
        if self._open is None:
            return
        x, rows, forward, backward = self._open
        self._open = None
        if self.missing:
            self.state.busy -= 1
        elif self.speed > 0:
            passes = self.meter.forward_images - forward + 2 * (self.meter.backward_images - backward)
            self.state.busy += max(0.0, passes / len(rows) * self.speed - 1)
        if self.labels is not None:
            self.state.waiting.append((x, self.labels.to(rows.device)[rows]))
            if len(self.state.waiting) > self.delay:
                with torch.enable_grad():
                    self.method.feedback(*self.state.waiting.popleft())


class _Unlabelled:
    """A ledger of what the answers say without labels."""

    def __init__(self, space: LabelSpace, sums: UnlabelledSums) -> None:
        self.space, self.sums = space, sums

    def add(self, rows: Tensor, logits: Tensor, missed: bool = False) -> None:
        self.sums.add(rows, logits)


def stream_step(method: Method, test: TestSet, space: LabelSpace, scenario: Scenario, compute: Compute, meter: Meter,
                state: StreamState, seed: int, *, at: SegmentPosition | None = None,
                between: Callable[[Callable[[], SegmentPosition]], None] | None = None) -> tuple[list[StreamEntry], Scored]:
    """One segment of the test stream, adapted to and answered batch by batch; entries per domain, in order.

    Args:
        at: where an interrupted segment stood; ``method`` and ``state`` then are what they were there.
        between: called between two batches with a function that tells where the segment stands.
    """
    device = resolve_device(compute.device)
    n, size = len(test.data), test.batch_size or scenario.test_batch_size  # type: ignore[arg-type]
    names, codes = test.rows if test.rows is not None else ((test.domain or test.name,), np.zeros(n, np.int64))
    ledger, sums = Ledger(space), UnlabelledSums(n, len(space), np.asarray(codes))
    before = 0.0
    if at is not None:
        ledger.parts.append(at.answers)
        sums.sums, sums.probability, before = at.sums.cpu(), at.probability.cpu(), at.seconds
    pool = Pool([test.data], size, device, workers=compute.workers)
    clock = StreamClock(method, scenario, meter, state, labels_of(test.data) if "labels" in scenario.gives else None)
    started = time.perf_counter()

    def position() -> SegmentPosition:
        answers = tuple(torch.cat([t.cpu() for t in column]) for column in zip(*ledger.parts, strict=True))
        return SegmentPosition(len(answers[0]) // size, answers, sums.sums, sums.probability, generators(),
                               before + time.perf_counter() - started)

    answer_all(method, pool, torch.arange(n)[0 if at is None else at.batch * size:], [ledger, _Unlabelled(space, sums)], clock,
               compute, seed, resumed=None if at is None else lambda: set_generators(at.generators),
               between=None if between is None else lambda: between(position))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = before + time.perf_counter() - started
    answers = ledger.collect()
    scored = Scored.of(answers, space, test)
    truth = columns_of(labels_of(test.data), scenario.space).numpy()
    entries = []
    for code, domain in enumerate(names):
        here = np.asarray(codes) == code
        if here.any():
            name = test.name if test.rows is None else f"{test.name}:{domain}"
            entries.append(_entry(name, domain, here, answers, scored, truth, len(space), seconds, sums.of(code)))
    return entries, scored


def _entry(name: str, domain: str, here: np.ndarray, answers: Answers, scored: Scored, truth: np.ndarray, classes: int,
           seconds: float, unlabelled: Mapping[str, float] | None) -> StreamEntry:
    """The images ``here`` (n,) of a segment, one domain of it."""
    fine = here & ~answers.bad
    share = top_class_share(np.bincount(answers.column[fine], minlength=classes))
    bins = CalibrationBins.of(answers.confidence[fine], scored.right[fine])
    return StreamEntry(
        name=name, domain=domain, visit=1, total=int(here.sum()), correct=int(scored.right[here].sum()),
        ece=bins.ece() if fine.any() else None, top_class_share=share,
        collapsed=bool(collapsed(share, len(np.unique(truth[here])))) if fine.any() else False,
        nonfinite=int(answers.bad[here].sum()), missed=int(answers.missed[here].sum()),
        seconds=seconds * float(here.mean()), bins=bins.to_json(), unlabelled=unlabelled,
    )

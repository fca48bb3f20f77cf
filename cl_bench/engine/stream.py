"""A test stream as it arrives: resets, streams that do not wait, labels that come late, and the score of each domain."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.tensor import labels_of
from ..heads import columns_of
from ..label_free.sums import UnlabelledSums
from ..method import Method
from ..numbers.stream_metrics import CalibrationBins, StreamEntry, collapsed, top_class_share
from ..scenario import Scenario
from ..types import LabelSpace, TestSet
from .compute import Compute, resolve_device
from .feed import Feed
from .measure import Scored, Sink, answer_all
from .meter import Meter
from .seeding import derive, seeded

__all__ = ["reset_counted", "stream_step", "taken_back"]


def taken_back(state: dict[str, Any], before: dict[str, int | float], after: dict[str, int | float]) -> None:
    """A reset takes a method's counters back as well; the record counts the whole run, so what they lost is kept in
    ``state["spent"]``."""
    spent = state.setdefault("spent", {})
    for key, value in before.items():
        spent[key] = spent.get(key, 0) + value - after.get(key, 0)


def reset_counted(method: Method, state: dict[str, Any]) -> None:
    """``method.reset()``, with :func:`taken_back`."""
    before = method.counters()
    method.reset()
    taken_back(state, before, method.counters())


class _Arrivals:
    """The batches of a stream segment as they arrive: resets, constant speed and late labels happen between them."""

    def __init__(self, feed: Feed, method: Method, scenario: Scenario, meter: Meter, state: dict[str, Any],
                 labels: Tensor | None) -> None:
        self.feed, self.method, self.scenario, self.meter, self.state = feed, method, scenario, meter, state
        self._speed = float(getattr(scenario, "stream_speed", 0) or 0)
        self._late = _late_labels(method, labels, int(getattr(scenario, "label_delay", 0) or 0), state)
        self._open: tuple[Tensor, Tensor, int, int] | None = None  # handed out, its consequences not drawn yet

    def __len__(self) -> int:
        return len(self.feed)

    def __iter__(self) -> Iterator[Any]:
        for x, rows in self.feed:
            self.settle()
            if self.scenario.reset == "batch":
                reset_counted(self.method, self.state)
            self.state["missing"] = self._speed > 0 and float(self.state.get("busy", 0.0)) >= 1
            self._open = x, rows, self.meter.forward_images, self.meter.backward_images
            yield x, rows

    def settle(self) -> None:
        """What follows from the answer to the batch last handed out. Lightning asks for as many batches as there are and
        never comes back after the last one, so the end of a segment calls this too."""
        if self._open is None:
            return
        x, rows, forward, backward = self._open
        self._open = None
        busy = float(self.state.get("busy", 0.0))
        if self.state["missing"]:
            self.state["busy"] = busy - 1
        elif self._speed > 0:  # a backward pass costs about two forward passes; the batch's own slot is one
            passes = self.meter.forward_images - forward + 2 * (self.meter.backward_images - backward)
            self.state["busy"] = busy + max(0.0, passes / len(rows) * self._speed - 1)
        if self._late is not None:
            self._late(x, rows)


def _late_labels(method: Method, labels: Tensor | None, delay: int, state: dict[str, Any]) -> Any:
    """Hands batch t's labels over when batch t + delay has been answered, to methods that may have them. What waits is
    part of the stream's ``state``: a delay can be longer than a segment."""
    if labels is None or "labels" not in method.needs:
        return None
    waiting: deque[tuple[Tensor, Tensor]] = state.setdefault("waiting", deque())

    def deliver(x: Tensor, rows: Tensor) -> None:
        waiting.append((x, labels.to(rows.device)[rows]))
        if len(waiting) > delay:
            with torch.enable_grad():
                method.feedback(*waiting.popleft())

    return deliver


class _StreamSink(Sink):
    """As :class:`Sink`; where a batch was missed by a slow method, the answer is the one without adapting."""

    def __init__(self, spaces: Sequence[LabelSpace], sizes: Sequence[int], state: dict[str, Any],
                 codes: np.ndarray | None = None) -> None:
        super().__init__(spaces, sizes)
        self.state = state
        self.unlabelled = UnlabelledSums(sizes[0], len(spaces[0]), codes)
        self.missed = np.zeros(sizes[0], dtype=bool)  # by row: answered without adapting

    @property
    def missing(self) -> bool:
        return bool(self.state.get("missing", False))

    def __call__(self, index: int, rows: Tensor, logits: Tensor) -> None:
        super().__call__(index, rows, logits)
        self.unlabelled.add(rows, logits)
        if self.missing:
            self.missed[rows.cpu().numpy()] = True


def stream_step(method: Method, test: TestSet, space: LabelSpace, scenario: Scenario, compute: Compute, meter: Meter,
                state: dict[str, Any], seed: int) -> tuple[list[StreamEntry], Scored]:
    """One segment of the test stream, adapted to and answered batch by batch; entries per domain, in order.

    ``state`` carries what crosses segments of a constant-speed stream.
    """
    device = resolve_device(compute.device)
    sink = _StreamSink([space], [len(test.data)], state, None if test.rows is None else np.asarray(test.rows[1]))  # type: ignore[arg-type]
    feed = Feed(test.data, test.batch_size or scenario.test_batch_size, device, workers=compute.workers, labelled=False)
    given = labels_of(test.data) if "labels" in scenario.gives else None
    started = time.perf_counter()
    arrivals = _Arrivals(feed, method, scenario, meter, state, given)
    answer_all(method, sink, arrivals, compute, seed)
    with seeded(derive(seed, "end")):
        arrivals.settle()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    scored = Scored.of(sink, 0, test)
    rows, confidence, column, bad = sink.collect(0)
    back = np.argsort(rows, kind="stable")
    confidence, column, bad = confidence[back], column[back], bad[back]
    truth = columns_of(labels_of(test.data), scenario.space).numpy()
    names, codes = test.rows if test.rows is not None else ((test.domain or test.name,), np.zeros(len(rows), np.int64))
    entries = []
    for code, domain in enumerate(names):
        here = np.asarray(codes) == code
        if not here.any():
            continue
        ok = here & ~bad
        share = top_class_share(np.bincount(column[ok], minlength=len(space)))
        present = len(np.unique(truth[here]))
        entries.append(StreamEntry(
            name=test.name if test.rows is None else f"{test.name}:{domain}", domain=domain, visit=1,
            total=int(here.sum()), correct=int(scored.right[here].sum()),
            ece=CalibrationBins.of(confidence[ok], scored.right[ok]).ece() if ok.any() else None,
            top_class_share=share, collapsed=bool(collapsed(share, present)) if ok.any() else False,
            nonfinite=int(bad[here].sum()), missed=int(sink.missed[here].sum()),
            seconds=seconds * float(here.mean()), bins=CalibrationBins.of(confidence[ok], scored.right[ok]).to_json(),
            unlabelled=sink.unlabelled.of(code),
        ))
    return entries, scored

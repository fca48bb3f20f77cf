"""Fitting and measuring one method on Lightning. The only module besides the contract that knows Lightning.

Test labels stay here: what a Trainer, and so a method, sees of a test set are images and row numbers.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .data.tensor import TensorData, as_float, labels_of
from .errors import UserError
from .heads import columns_of
from .meter import Meter
from .method import Method
from .rng import Rng
from .scenario import Scenario
from .seeding import derive, seeded
from .stream_metrics import CalibrationBins, StreamEntry, collapsed, top_class_share
from .types import Batch, Experience, LabelSpace, TestSet, Transform

__all__ = ["Compute", "Fitted", "Scored", "fit", "measure", "resolve_device", "stream_step"]

LOSS_POINTS = 200  # per experience: enough for a curve, few enough for a thousand runs


@dataclass(frozen=True)
class Compute:
    """Where and how a run computes.

    Attributes:
        device: ``cpu``, ``cuda``, or ``auto``: the GPU where there is one.
        precision: Lightning's precision name; ``32-true`` is bit-reproducible on a CPU.
        workers: processes that decode images of data sets that are not held in memory; never changes a number.
        threads: CPU threads; fixed, because sums depend on it in the last bit. 0 leaves torch's own choice.
    """

    device: str = "auto"
    precision: str = "32-true"
    workers: int = 0
    threads: int = 1


def resolve_device(name: str) -> torch.device:
    """``auto`` to what there is.

    Raises:
        UserError: for a device this machine has not, or an unknown word.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as fault:
        raise UserError(f"{name!r} is not a device; use cpu, cuda or auto.") from fault
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("this machine has no CUDA device that torch can use; run with --device cpu.")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is not supported; use cpu, cuda or auto.")
    return device


class Feed:
    """Batches for a Trainer: an iterable with a length over data that lies on the device where it can."""

    def __init__(self, data: Dataset, size: int, device: torch.device, *, workers: int = 0, seed: int | None = None,
                 augment: Transform | None = None, labelled: bool = True) -> None:
        self.data, self.size, self.device, self.workers = data, size, device, workers
        self.augment, self.labelled = augment, labelled
        self.order = None if seed is None else torch.Generator().manual_seed(derive(seed, "order"))
        self.noise = None if seed is None else torch.Generator(device).manual_seed(derive(seed, "augment"))
        self.held = data.to(device) if isinstance(data, TensorData) and _fits(data, device) else None

    def __len__(self) -> int:
        return math.ceil(len(self.data) / self.size)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        n = len(self.data)  # type: ignore[arg-type]
        order = torch.arange(n) if self.order is None else torch.randperm(n, generator=self.order)
        for rows, x, y in self._read(order):
            x = as_float(x)
            if not self.labelled:
                yield x, rows
            else:
                yield Batch(x if self.augment is None else self.augment(x, self.noise), y)  # type: ignore[arg-type]

    def _read(self, order: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        if self.held is not None:
            for rows in order.to(self.device).split(self.size):
                yield rows, self.held.x[rows], self.held.y[rows]
            return
        chunks = [c.tolist() for c in order.split(self.size)]
        pin = self.device.type == "cuda"
        for rows, (x, y) in zip(order.split(self.size), DataLoader(  # type: ignore[call-arg]
                self.data, batch_sampler=chunks, num_workers=self.workers, pin_memory=pin), strict=True):
            yield rows.to(self.device), x.to(self.device, non_blocking=pin), y.to(self.device, non_blocking=pin)


def _fits(data: TensorData, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return data.x.numel() * data.x.element_size() < free // 4


def _trainer(compute: Compute, epochs: int, callbacks: Sequence[Callback] = ()) -> Trainer:
    device = resolve_device(compute.device)
    return Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu", devices=1 if device.index is None else [device.index]
        if device.type == "cuda" else 1, max_epochs=epochs, precision=compute.precision,  # type: ignore[arg-type]
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, inference_mode=False, callbacks=list(callbacks), use_distributed_sampler=False,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's banners and loader advice say nothing about a fresh Trainer per experience; keep them out."""
    loggers = [logging.getLogger(n) for n in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [lg.level for lg in loggers]
    for lg in loggers:
        lg.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pytorch_lightning")
            warnings.filterwarnings("ignore", module="lightning_fabric")
            warnings.filterwarnings("ignore", message=".*(torch.jit|LeafSpec|treespec|pin_memory).*")
            yield
    finally:
        for lg, level in zip(loggers, levels, strict=True):
            lg.setLevel(level)


class _Losses(Callback):
    """Keeps every step's loss on the device; read once, after the fit."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self.values.append(loss.detach())


@dataclass
class Fitted:
    """What a fit left behind: (step, loss) points, how many losses were not finite, optimizer steps, and how many
    parameters were trainable."""

    losses: list[tuple[int, float]]
    nonfinite: int
    steps: int
    trainable: int


def fit(method: Method, exp: Experience, compute: Compute, seed: int, max_epochs: int | None = None) -> Fitted:
    """``begin`` -> Lightning's fit on a fresh Trainer -> ``end``, all random draws from ``seed``."""
    device = resolve_device(compute.device)
    with seeded(seed), _quiet():
        method.rng = Rng(derive(seed, "method"))
        method.to(device)
        method.train()
        method.begin(exp)
        method.to(device)
        trainable = sum(p.numel() for p in method.parameters() if p.requires_grad)
        epochs = method.epochs_for(exp)
        epochs = epochs if max_epochs is None else min(epochs, max_epochs)
        losses, steps = _Losses(), 0
        if epochs > 0:
            feed = Feed(method.training_data(exp), method.batch_size, device, workers=compute.workers, seed=seed,
                        augment=exp.augment)
            trainer = _trainer(compute, epochs, [losses])
            method.train()
            trainer.fit(method, feed)
            steps = int(trainer.global_step)
            method.to(device)  # Lightning leaves a model where its strategy put it
        method.end(exp)
        method.eval()
    values = torch.stack([v.float() for v in losses.values]).cpu().tolist() if losses.values else []
    stride = max(1, math.ceil(len(values) / LOSS_POINTS))
    points = [(k, v) for k, v in enumerate(values) if k % stride == 0 or k == len(values) - 1]
    return Fitted(points, sum(not math.isfinite(v) for v in values), steps, trainable)


class _Sink:
    """Takes answers from ``Method.test_step``. It knows label spaces and sizes; labels it never had."""

    @property
    def missing(self) -> bool:
        """Whether the batch at hand came too fast for the method and is answered without adapting."""
        return False

    def __init__(self, spaces: Sequence[LabelSpace], sizes: Sequence[int]) -> None:
        self.spaces = list(spaces)
        self.sizes = list(sizes)
        self.parts: list[list[tuple[Tensor, ...]]] = [[] for _ in spaces]

    def space(self, index: int) -> LabelSpace:
        return self.spaces[index]

    def __call__(self, index: int, rows: Tensor, logits: Tensor) -> None:
        if logits.shape != (len(rows), len(self.spaces[index])):
            raise ValueError(f"predict returned {tuple(logits.shape)} for {len(rows)} images and "
                             f"{len(self.spaces[index])} classes: it must return (images, classes)")
        logits = logits.detach().float()
        best, column = logits.softmax(1).max(1)
        bad = logits.isnan().any(1) | (logits == torch.inf).any(1) | best.isnan()
        self.parts[index].append((rows, torch.where(bad, 0.0, best), torch.where(bad, -1, column), bad))

    def collect(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(rows, confidence, column or -1, non-finite) of everything answered, in order of arrival."""
        if not self.parts[index]:
            empty = np.zeros(0)
            return empty.astype(np.int64), empty, empty.astype(np.int64), empty.astype(bool)
        columns = [torch.cat(c).cpu().numpy() for c in zip(*self.parts[index], strict=True)]
        return columns[0], columns[1], columns[2], columns[3]

    def __deepcopy__(self, memo: dict[int, Any]) -> _Sink:
        return self


@dataclass
class Scored:
    """Predictions of one test set against its labels: counts that add up."""

    total: int
    correct: int
    nonfinite: int
    share: float
    bins: CalibrationBins
    predictions: np.ndarray  # global label ids in row order, -1 where the answer was not finite
    right: np.ndarray

    @classmethod
    def of(cls, sink: _Sink, index: int, test: TestSet) -> Scored:
        rows, confidence, column, bad = sink.collect(index)
        space, truth = sink.spaces[index], labels_of(test.data).numpy()
        if len(rows) != len(truth) or len(np.unique(rows)) != len(truth):
            raise RuntimeError(f"{test.name}: {len(rows)} answers for {len(truth)} images")
        predicted = np.where(column >= 0, np.asarray(space.ids)[np.maximum(column, 0)], -1)
        right = predicted == truth[rows]
        back = np.argsort(rows, kind="stable")
        histogram = np.bincount(column[column >= 0], minlength=len(space))
        return cls(len(rows), int(right.sum()), int(bad.sum()), top_class_share(histogram),
                   CalibrationBins.of(confidence[~bad], right[~bad]), predicted[back], right[back])


def measure(method: Method, tests: Sequence[TestSet], spaces: Sequence[LabelSpace], compute: Compute, size: int,
            seed: int) -> list[Scored]:
    """Score ``method`` on each test set. A method that adapts is measured on a copy, so that measuring does not teach.
    """
    if not tests:
        return []
    device = resolve_device(compute.device)
    if method.adapts:
        import copy

        return [_run(copy.deepcopy(method), [t], [s], compute, size, device, derive(seed, t.name))[0]
                for t, s in zip(tests, spaces, strict=True)]
    return _run(method, tests, spaces, compute, size, device, seed)


def _run(method: Method, tests: Sequence[TestSet], spaces: Sequence[LabelSpace], compute: Compute, size: int,
         device: torch.device, seed: int) -> list[Scored]:
    sink = _Sink(spaces, [len(t.data) for t in tests])  # type: ignore[arg-type]
    feeds = [Feed(t.data, t.batch_size or size, device, workers=compute.workers, labelled=False) for t in tests]
    _test(method, sink, feeds, compute, seed)
    return [Scored.of(sink, k, t) for k, t in enumerate(tests)]


def _test(method: Method, sink: _Sink, feeds: Any, compute: Compute, seed: int) -> None:
    method.to(resolve_device(compute.device))
    method.__dict__["_answers"] = sink
    try:
        with seeded(seed), _quiet():
            _trainer(compute, 1).test(method, feeds, verbose=False)
    finally:
        method.__dict__.pop("_answers", None)
        method.__dict__["_trainer"] = None


class _Arrivals:
    """The batches of a stream segment as they arrive: resets, constant speed and late labels happen between them."""

    def __init__(self, feed: Feed, method: Method, scenario: Scenario, meter: Meter, state: dict[str, Any],
                 labels: Tensor | None) -> None:
        self.feed, self.method, self.scenario, self.meter, self.state = feed, method, scenario, meter, state
        self._late = _late_labels(method, labels, int(getattr(scenario, "label_delay", 0) or 0))

    def __len__(self) -> int:
        return len(self.feed)

    def __iter__(self) -> Iterator[Any]:
        speed = float(getattr(self.scenario, "stream_speed", 0) or 0)
        for x, rows in self.feed:
            if self.scenario.reset == "batch":
                self.method.reset()
            busy = float(self.state.get("busy", 0.0))
            self.state["missing"] = speed > 0 and busy >= 1
            before = (self.meter.forward_images, self.meter.backward_images)
            yield x, rows
            if speed > 0:
                if self.state["missing"]:
                    self.state["busy"] = busy - 1
                    self.state["missed"] = int(self.state.get("missed", 0)) + len(rows)
                else:  # a backward pass costs about two forward passes; the batch's own slot is one
                    passes = (self.meter.forward_images - before[0] + 2 * (self.meter.backward_images - before[1]))
                    self.state["busy"] = busy + max(0.0, passes / len(rows) * speed - 1)
            if self._late is not None:
                self._late(x, rows)


def _late_labels(method: Method, labels: Tensor | None, delay: int) -> Any:
    """Hands batch t's labels over when batch t + delay has been answered, to methods that may have them."""
    if labels is None or "labels" not in method.needs:
        return None
    waiting: deque[tuple[Tensor, Tensor]] = deque()

    def deliver(x: Tensor, rows: Tensor) -> None:
        waiting.append((x, labels.to(rows.device)[rows]))
        if len(waiting) > delay:
            with torch.enable_grad():
                method.feedback(*waiting.popleft())

    return deliver


class _StreamSink(_Sink):
    """As :class:`_Sink`; where a batch was missed by a slow method, the answer is the one without adapting."""

    def __init__(self, spaces: Sequence[LabelSpace], sizes: Sequence[int], state: dict[str, Any]) -> None:
        super().__init__(spaces, sizes)
        self.state = state

    @property
    def missing(self) -> bool:
        return bool(self.state.get("missing", False))


def stream_step(method: Method, test: TestSet, space: LabelSpace, scenario: Scenario, compute: Compute, meter: Meter,
                state: dict[str, Any], seed: int) -> tuple[list[StreamEntry], Scored]:
    """One segment of the test stream, adapted to and answered batch by batch; entries per domain, in order.

    ``state`` carries what crosses segments of a constant-speed stream.
    """
    import time

    device = resolve_device(compute.device)
    state["missed"] = 0
    sink = _StreamSink([space], [len(test.data)], state)  # type: ignore[arg-type]
    feed = Feed(test.data, test.batch_size or scenario.test_batch_size, device, workers=compute.workers, labelled=False)
    given = labels_of(test.data) if "labels" in scenario.gives else None
    started = time.perf_counter()
    _test(method, sink, _Arrivals(feed, method, scenario, meter, state, given), compute, seed)
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
            nonfinite=int(bad[here].sum()), missed=int(state["missed"]) if test.rows is None else 0,
            seconds=seconds * float(here.mean()), bins=CalibrationBins.of(confidence[ok], scored.right[ok]).to_json(),
        ))
    return entries, scored

"""Answers of a method to test images, and their score.

A Trainer holds one opaque iterable of images. Row numbers, label spaces, clocks and labels stay here: a method is asked
for an answer to a batch and cannot tell which test set, which rows or which experience it is of.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .. import ranks
from ..adaptation.base import TestTimeMethod
from ..data.tensor import TensorData, labels_of
from ..errors import UserError
from ..method import Method
from ..numbers.stream_metrics import CalibrationBins, top_class_share
from ..types import LabelSpace, TestSet
from .compute import Compute, resolve_device
from .features import Features
from .feed import Pool, opaque
from .seeding import derive, seeded
from .trainer import interruptible, quiet, tester, untouched

__all__ = ["Clock", "Ledger", "Scored", "answer_all", "fitting", "measure"]

PIXELS = 16 * 2**20  # bytes of a batch of test images as the trunk takes them, on a CPU


class Ledger:
    """The answers of a method to N images over the classes of ``space``, by row number. Labels it never had."""

    def __init__(self, space: LabelSpace) -> None:
        self.space = space
        self.parts: list[tuple[Tensor, ...]] = []

    def add(self, rows: Tensor, logits: Tensor, missed: bool = False) -> None:
        """One batch: row numbers (B,), logits (B, len(space)); ``missed``: answered without adapting."""
        logits = logits.detach().float()
        best, column = logits.softmax(1).max(1)
        bad = logits.isnan().any(1) | (logits == torch.inf).any(1) | best.isnan()
        self.parts.append((rows, torch.where(bad, 0.0, best), torch.where(bad, -1, column), bad,
                           torch.full((len(rows),), missed)))

    def collect(self) -> Answers:
        """Everything answered, in row order."""
        if not self.parts:
            return Answers(*(np.zeros(0, t) for t in (np.int64, np.float32, np.int64, bool, bool)))
        whole = [torch.cat([t.cpu() for t in column]).numpy() for column in zip(*self.parts, strict=True)]
        back = np.argsort(whole[0], kind="stable")
        return Answers(*(column[back] for column in whole))


@dataclass(frozen=True)
class Answers:
    """Arrays (N,) in row order: row numbers, confidence, column or -1, whether not finite, whether missed."""

    rows: np.ndarray
    confidence: np.ndarray
    column: np.ndarray
    bad: np.ndarray
    missed: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Answers]) -> Answers:
        """The answers of all processes, in row order."""
        if len(parts) == 1:
            return parts[0]
        whole = [np.concatenate(column) for column in zip(*((p.rows, p.confidence, p.column, p.bad, p.missed) for p in parts),
                                                          strict=True)]
        back = np.argsort(whole[0], kind="stable")
        return cls(*(column[back] for column in whole))

    def part(self, start: int, end: int) -> Answers:
        """The rows ``start`` to ``end``, counted from 0."""
        here = (self.rows >= start) & (self.rows < end)
        return Answers(self.rows[here] - start, self.confidence[here], self.column[here], self.bad[here], self.missed[here])


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
    def of(cls, answers: Answers, space: LabelSpace, test: TestSet) -> Scored:
        truth = labels_of(test.data).numpy()
        if not np.array_equal(answers.rows, np.arange(len(truth))):
            raise RuntimeError(f"{test.name}: {len(answers.rows)} answers for {len(truth)} images")
        column, fine = answers.column, ~answers.bad
        predicted = np.where(column >= 0, np.asarray(space.ids)[np.maximum(column, 0)], -1)
        right = predicted == truth
        histogram = np.bincount(column[column >= 0], minlength=len(space))
        return cls(len(truth), int(right.sum()), int(answers.bad.sum()), top_class_share(histogram),
                   CalibrationBins.of(answers.confidence[fine], right[fine]), predicted, right)


class Clock(Protocol):
    """What happens between two batches of a stream, on the engine's side."""

    missing: bool  # the batch at hand came too fast for the method and is answered without adapting

    def begin(self, x: Tensor, rows: Tensor) -> None:
        """A batch arrives."""

    def settle(self) -> None:
        """What follows from the answer to the batch that arrived last; does nothing a second time."""


class _NoClock:
    missing = False
    batch: tuple[Tensor, Tensor, int] | None = None  # the images at hand, their rows, and how often they were written into

    def begin(self, x: Tensor, rows: Tensor) -> None:
        self.batch = x, rows, x._version

    def settle(self) -> None: ...


def answer_all(method: Method, pool: Pool, order: Tensor, ledgers: Sequence[Any], clock: Clock, compute: Compute, seed: int,
               *, between: Callable[[], None] | None = None, resumed: Callable[[], None] | None = None) -> None:
    """Ask ``method`` for an answer to the rows ``order`` (n,) of ``pool``; every ledger is told of each.

    Args:
        between: called before each batch but the first, with no batch under way.
        resumed: called before the first batch, once all that starting draws of random numbers was drawn.

    Raises:
        UserError: where the method returns something that is no answer.
    """
    handed: list[Tensor] = []
    space, taken, given = ledgers[0].space, [False], [0]
    switched = {m: m.training for m in method.modules()}  # for a segment taken up in its middle: by what was answered of it
    method.eval()  # the Trainer puts back what it finds, which is the same for a segment that was taken up

    def images() -> Iterator[Tensor]:
        for k, (rows, x) in enumerate(pool.batches(order)):
            if k == 0:
                if taken[0]:
                    raise UserError(f"{type(method).__name__} reads the test stream itself; it may see a test image only in "
                                    "predict.")
                taken[0] = True
                if resumed is not None:
                    for module, training in switched.items():
                        module.training = training
                    resumed()
            else:
                clock.settle()
                if between is not None:
                    between()
            clock.begin(x, rows)
            handed.append(rows)
            given[0] += len(rows)
            yield x

    def answer(x: Tensor) -> None:
        if len(handed) != 1:
            raise UserError(f"{type(method).__name__} reads the test stream itself; it may see a test image only in predict.")
        rows, missed = handed.pop(), clock.missing
        with torch.set_grad_enabled(type(method).adapts and not missed):
            logits = _checked(method, "answer" if missed else "predict", x, space)
        for ledger in ledgers:
            ledger.add(rows, logits, missed)

    Method.to(method, resolve_device(compute.device))
    method.__dict__["_answers"] = answer
    try:
        with seeded(seed), quiet(), interruptible():
            with untouched(tester(compute)) as trainer:
                trainer.test(method, opaque(images, -(-len(order) // pool.size)), verbose=False)
            clock.settle()
            if handed or given[0] != len(order):
                raise UserError(f"{type(method).__name__} took {given[0]} of {len(order)} test images: a method must answer "
                                "every batch that its Trainer hands out.")
    except BaseException:
        tester.cache_clear()  # an interrupted Trainer is not used again
        raise
    finally:
        method.__dict__.pop("_answers", None)
        method.__dict__["_trainer"] = None


def _checked(method: Method, verb: str, x: Tensor, space: LabelSpace) -> Tensor:
    """The method's answer, if it is one."""
    logits = getattr(method, verb)(x, copy.copy(space))  # nobody else reads what is written into it
    name = f"{type(method).__name__}.{verb}"
    if type(logits) not in (Tensor, torch.nn.Parameter):  # a subclass could answer by itself what its softmax is
        raise UserError(f"{name} returned a {type(logits).__name__}: it must return a plain float tensor (images, classes).")
    if logits.shape != (len(x), len(space)):
        raise UserError(f"{name} returned {tuple(logits.shape)} for {len(x)} images and {len(space)} classes: it must return "
                        "(images, classes).")
    if not logits.is_floating_point() or logits.device.type == "meta" or logits.layout != torch.strided:
        raise UserError(f"{name} returned {str(logits.dtype).removeprefix('torch.')} values on {logits.device}: it must return "
                        "float logits on the device of the images.")
    return logits


def measure(method: Method, tests: Sequence[TestSet], spaces: Sequence[LabelSpace], compute: Compute, size: int,
            seed: int, features: Features | None = None) -> list[Scored]:
    """Score ``method`` on each test set, every image in one pass.

    A method that adapts is measured on a copy per test set, so that measuring does not teach. For any other, the images
    of all test sets that are answered among the same classes come in one random order: neither the order nor the
    company of an image tells which test set, and so which experience, it is of. One test set alone comes in its order.
    Its batches are no larger than fits, unless it is a test-time method, whose answers may follow from the batch (its
    statistics, its neighbours): that has batches of the stream's size. ``features`` remembers those of a trunk that nothing
    trains.
    """
    device = resolve_device(compute.device)
    groups: dict[Any, list[int]] = {}
    for k, (test, space) in enumerate(zip(tests, spaces, strict=True)):
        key: Any = k if type(method).adapts else (space.ids, test.batch_size or size, _form(test.data))
        groups.setdefault(key, []).append(k)
    scored: dict[int, Scored] = {}
    row = object()
    for members in groups.values():
        first, space = tests[members[0]], spaces[members[0]]
        data = [tests[k].data for k in members]
        most = first.batch_size or size
        pool = Pool(data, most if type(method).adapts else fitting(method, data, most, device), device, workers=compute.workers)
        ledger = Ledger(space)
        place, order = derive(seed, first.name) if type(method).adapts else seed, torch.arange(len(pool))
        if len(members) > 1:
            order = order[torch.randperm(len(pool), generator=torch.Generator().manual_seed(derive(seed, "order")))]
        if ranks.size() > 1:  # whole batches to each process, so that none is of other images than in one process
            order = torch.cat([order[:0], *order.split(pool.size)[ranks.rank()::ranks.size()]])
        if len(order) or ranks.size() == 1:
            asked = copy.deepcopy(method) if type(method).adapts else method
            clock = _NoClock()
            with _remembering(method, features, pool, clock, device, row):
                answer_all(asked, pool, order, [ledger], clock, compute, place)
        answers = Answers.joined(ranks.gathered(ledger.collect()))
        for k, start, end in zip(members, pool.starts, pool.starts[1:], strict=False):
            scored[k] = Scored.of(answers.part(start, end), space, tests[k])
    return [scored[k] for k in range(len(tests))]


def fitting(method: Method, data: Sequence[Any], size: int, device: torch.device) -> int:
    """Images per batch of a method that does not adapt: ``size`` of a test-time method, and of others at most so many that
    their pixels, as large as the trunk takes them, fill 16 MiB on a CPU and 1 GiB on a GPU. The activations of a large
    network are some 30 times that."""
    first = next((torch.as_tensor(part[0][0]) for part in data if len(part)), None)
    if first is None or first.ndim != 3 or isinstance(method, TestTimeMethod):
        return size
    side = method.backbone.info["preprocess"]["size"] or 0
    each = 4 * max(first.numel(), first.shape[0] * side * side)
    return max(1, min(size, (PIXELS * 64 if device.type == "cuda" else PIXELS) // each))


def _remembering(method: Method, features: Features | None, pool: Pool, clock: _NoClock,
                 device: torch.device, row: object) -> AbstractContextManager[None]:
    """The trunk with what is remembered of the images of ``pool``, where it is a fixed function of them."""
    if features is None or type(method).adapts or ranks.size() > 1 or not len(pool):
        return nullcontext()
    Method.to(method, device)
    method.eval()
    table = features.of(method, pool.data, pool.size, row)
    return nullcontext() if table is None else features.answering(method, lambda: clock.batch, table)


def _form(data: Any) -> Any:
    """What items of two data sets must share to come in one batch."""
    if isinstance(data, TensorData):
        return "held", tuple(data.x.shape[1:]), data.x.dtype
    first = torch.as_tensor(data[0][0])
    return "read", tuple(first.shape), first.dtype

"""Answers of a method to test images, and their score. Labels stay here: a Trainer, and so a method, never holds them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.tensor import labels_of
from ..method import Method
from ..numbers.stream_metrics import CalibrationBins, top_class_share
from ..types import LabelSpace, TestSet
from .compute import Compute, resolve_device
from .feed import Feed
from .seeding import derive, seeded
from .trainer import interruptible, quiet, tester

__all__ = ["Scored", "Sink", "answer_all", "measure"]


class Sink:
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

    def __deepcopy__(self, memo: dict[int, Any]) -> Sink:
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
    def of(cls, sink: Sink, index: int, test: TestSet) -> Scored:
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
        return [_run(copy.deepcopy(method), [t], [s], compute, size, device, derive(seed, t.name))[0]
                for t, s in zip(tests, spaces, strict=True)]
    return _run(method, tests, spaces, compute, size, device, seed)


def _run(method: Method, tests: Sequence[TestSet], spaces: Sequence[LabelSpace], compute: Compute, size: int,
         device: torch.device, seed: int) -> list[Scored]:
    sink = Sink(spaces, [len(t.data) for t in tests])  # type: ignore[arg-type]
    feeds = [Feed(t.data, t.batch_size or size, device, workers=compute.workers, labelled=False) for t in tests]
    answer_all(method, sink, feeds, compute, seed)
    return [Scored.of(sink, k, t) for k, t in enumerate(tests)]


def answer_all(method: Method, sink: Sink, feeds: Any, compute: Compute, seed: int) -> None:
    method.to(resolve_device(compute.device))
    method.__dict__["_answers"] = sink
    try:
        with seeded(seed), quiet(), interruptible():
            tester(compute).test(method, feeds, verbose=False)
    except BaseException:
        tester.cache_clear()  # an interrupted Trainer is not used again
        raise
    finally:
        method.__dict__.pop("_answers", None)
        method.__dict__["_trainer"] = None

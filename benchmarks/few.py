"""A scenario with fewer test images than it has, for networks that are slow on a processor, and a stream whose clean images can
be corrupted; named by suites as ``benchmarks/few.py:Few``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from cl_bench_scenarios._data import view

from cl_bench import Scenario, TestSet, Wrapper
from cl_bench.data.tensor import labels_of
from cl_bench.ranges import Whole

__all__ = ["Few", "Still"]


class Few(Wrapper):
    """``of`` with the first test images of every class, and the first images of every domain of its stream.

    Args:
        of: what is cut; shuffle a stream whose images lie in the order of their classes.
        per_class: test images of every class; 0 = all.
        images: of every domain of the stream; 0 = all.
    """

    family: ClassVar[str] = "cut"
    paper: ClassVar[str] = "none: a cut for time"

    def __init__(self, of: Scenario, per_class: Whole = 0, images: Whole = 0) -> None:
        super().__init__(of)
        self.per_class, self.images = per_class, images

    def test_sets(self) -> Sequence[TestSet]:
        return self._tests

    @cached_property
    def _tests(self) -> list[TestSet]:
        return [view(t, firsts(labels_of(t.data), self.per_class)) for t in self.of.test_sets()]

    def stream(self) -> Sequence[TestSet]:
        return self._stream

    @cached_property
    def _stream(self) -> tuple[TestSet, ...]:
        return tuple(view(t, range(len(t.data))[: self.images or None]) for t in self.of.stream())  # type: ignore[arg-type]

    def protocol(self) -> Mapping[str, Any]:
        return {**self.of.protocol(), "test_per_class": self.per_class, "images_per_domain": self.images}


class Still(Wrapper):
    """The domains of a stream as its test sets too: what ``corrupted`` corrupts.

    Args:
        of: a stream, in an order of its own.
    """

    family: ClassVar[str] = "cut"
    paper: ClassVar[str] = "none: the same images"

    def __init__(self, of: Scenario) -> None:
        super().__init__(of)

    def test_sets(self) -> Sequence[TestSet]:
        return self._still

    @cached_property
    def _still(self) -> tuple[TestSet, ...]:
        return tuple(self.of.stream())


def firsts(y: torch.Tensor, count: int) -> torch.Tensor:
    """Rows of the first ``count`` images of every class of ``y`` (N,), in order; all where it is 0."""
    rows = [torch.nonzero(y == label).flatten()[: count or None] for label in y.unique()]
    return torch.cat(rows).sort().values

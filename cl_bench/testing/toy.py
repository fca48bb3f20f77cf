"""A scenario small enough to check a method on in a second: four handwritten digits, then the same ones corrupted."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import torch

from ..data import TensorData, as_float
from ..data.digits import DIGIT_NAMES, digits
from ..scenario import Scenario
from ..types import Experience, LabelSpace, TestSet

__all__ = ["ToyScenario"]


def class_names(classes: tuple[int, ...]) -> tuple[str, ...]:
    """What the toy's classes are called, for methods that read names."""
    return tuple(f"digit {DIGIT_NAMES[c]}" for c in classes)


class ToyScenario(Scenario):
    """Two experiences of two digits each and, where asked for, a stream of the same digits under contrast and noise."""

    gives: frozenset[str] = frozenset({"boundaries", "names", "source", "task_id", "labels"})
    test_batch_size = 16

    def __init__(self, *, learns: bool = True, answers: Literal["seen", "task", "all"] = "seen", train: int = 24,
                 test: int = 12) -> None:
        self.learns, self.answers, self.train, self.test = learns, answers, train, test
        if learns:
            self.gives = type(self).gives - {"source"}

    @cached_property
    def _parts(self) -> dict[str, TensorData]:
        return {part: digits(part) for part in ("train", "test")}

    def _data(self, part: str, classes: tuple[int, ...], each: int) -> TensorData:
        data = self._parts[part]
        rows = torch.cat([(data.y == c).nonzero().flatten()[:each] for c in classes])
        return data.subset(rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))])

    def _space(self, classes: tuple[int, ...]) -> LabelSpace:
        return LabelSpace(classes, class_names(classes))

    @property
    def source(self) -> Experience | None:
        if self.learns:
            return None
        return Experience("source", self._space((0, 1, 2, 3)), self._data("train", (0, 1, 2, 3), 3 * self.train))

    def experiences(self) -> list[Experience]:
        if not self.learns:
            return []
        return [Experience(f"digits {a}, {b}", self._space((a, b)), self._data("train", (a, b), self.train))
                for a, b in ((0, 1), (2, 3))]

    def test_sets(self) -> list[TestSet]:
        if not self.learns:
            return [TestSet("clean", self._space((0, 1, 2, 3)), self._data("test", (0, 1, 2, 3), self.test))]
        return [TestSet(f"digits {a}, {b}", self._space((a, b)), self._data("test", (a, b), self.test), of=f"digits {a}, {b}")
                for a, b in ((0, 1), (2, 3))]

    def stream(self) -> list[TestSet]:
        if self.learns:
            return []
        clean = self._data("test", (0, 1, 2, 3), self.test)
        x, noise = as_float(clean.x), torch.Generator().manual_seed(1)
        shifted = {
            "contrast": (x - 0.5) * 0.4 + 0.5,
            "noise": x + 0.15 * torch.randn(x.shape, generator=noise),
        }
        return [TestSet(n, self._space((0, 1, 2, 3)), TensorData((v.clamp(0, 1) * 255).to(torch.uint8), clean.y))
                for n, v in shifted.items()]

"""Scenarios whose test sets belong to no single experience, whatever they are called and however many there are."""

from __future__ import annotations

from typing import ClassVar

from cl_bench import Experience, LabelSpace, Scenario, TensorData, TestSet
from cl_bench.data.digits import digits

SPACE = LabelSpace(tuple(range(10)))


class Shared(Scenario):
    """Two domains of the same digits, and test sets common to both."""

    answers = "all"
    names: ClassVar[tuple[str, ...]] = ("everything",)

    def experiences(self) -> list[Experience]:
        data = digits("train")
        return [Experience(name, SPACE, TensorData(data.x[k::20], data.y[k::20])) for k, name in enumerate(("first", "second"))]

    def test_sets(self) -> list[TestSet]:
        data = digits("test")
        return [TestSet(name, SPACE, TensorData(data.x[k::4], data.y[k::4])) for k, name in enumerate(self.names)]


class Namesake(Shared):
    """The common test set is called like the first experience."""

    names = ("first",)


class AsMany(Shared):
    """As many common test sets as there are experiences."""

    names = ("x", "y")

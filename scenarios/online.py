"""Online learning: any learning scenario, every image seen once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from cl_bench import Experience, LabelSpace, Scenario, TestSet

__all__ = ["Online"]


class Online(Scenario):
    """A single pass over every experience of another scenario (Split-Digits by default).

    Methods' own ``epochs`` are capped at one; what a method replays from its memory does not count as another pass.

    Args:
        of: the scenario whose experiences are learned in one pass.
    """

    family: ClassVar[str] = "online"
    paper: ClassVar[str] = "Aljundi et al., CVPR 2019; Mai et al., Neurocomputing 2022"
    max_epochs = 1

    def __init__(self, of: Scenario | None = None) -> None:
        if of is None:
            from .split_digits import SplitDigits

            of = SplitDigits()
        self.of = of
        passed_on = ("gives", "answers", "reset", "test_batch_size", "backbone", "order")
        self.__dict__.update({key: getattr(of, key) for key in passed_on if hasattr(of, key)})

    @property
    def space(self) -> LabelSpace:
        return self.of.space

    @property
    def source(self) -> Experience | None:
        return self.of.source

    def experiences(self) -> Sequence[Experience]:
        return self.of.experiences()

    def test_sets(self) -> Sequence[TestSet]:
        return self.of.test_sets()

    def stream(self) -> Sequence[TestSet]:
        return self.of.stream()

    def timeline(self) -> Iterable[Experience | TestSet]:
        yield from self.of.timeline()

    def space_for(self, test: TestSet, seen: LabelSpace) -> LabelSpace:
        return self.of.space_for(test, seen)

    def protocol(self) -> Mapping[str, Any]:
        return {**self.of.protocol(), "online": True}

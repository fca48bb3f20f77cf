"""What settings may be chosen on: parts of the training data of the first experiences, or a stream without its labels.

A run on one of these holds no test label at all: a structural rule, not a promise of whoever looks at its numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from ..data.labels import labels_of
from ..data.tensor import TensorData
from ..errors import UserError
from ..ranges import Count, Range
from ..scenario import Scenario, Wrapper
from ..types import Experience, LabelSpace, TestSet

__all__ = ["Blind", "HeldOut"]


class HeldOut(Wrapper):
    """The first experiences of a scenario; of each class, part of its training data is held out and asked instead of any
    test set. There is no stream.

    Args:
        of: the scenario; none of its test sets is built.
        first: how many experiences.
        share: of the images of each class that are held out, evenly spaced, at least one.

    Raises:
        UserError: where the scenario learns nothing, or a class has a single image.
    """

    def __init__(self, of: Scenario, first: Count = 2, share: Annotated[float, Range(0.01, 0.9)] = 0.2) -> None:
        super().__init__(of)
        self.first, self.share = first, share

    @cached_property
    def _parts(self) -> list[tuple[Experience, TestSet]]:
        if not (every := list(self.of.experiences())):
            raise UserError(f"{type(self.of).__name__} learns nothing, so nothing of it can be held out.")
        return [self._divided(exp) for exp in every[:self.first]]

    def _divided(self, exp: Experience) -> tuple[Experience, TestSet]:
        labels = labels_of(exp.data)
        out = torch.zeros(len(labels), dtype=torch.bool)
        for label in labels.unique().tolist():
            rows = (labels == label).nonzero().flatten()
            if len(rows) < 2:
                raise UserError(f"class {label} of {exp.name} has a single training image; none can be held out.")
            count = min(max(1, round(len(rows) * self.share)), len(rows) - 1)
            out[rows[torch.linspace(0, len(rows) - 1, count).round().long()]] = True
        kept, asked = (_rows(exp.data, part.nonzero().flatten()) for part in (~out, out))
        return replace(exp, data=kept), TestSet(exp.name, exp.space, asked, of=exp.name)

    @property
    def space(self) -> LabelSpace:
        whole = LabelSpace()
        for exp, _ in self._parts:
            whole = whole | exp.space
        return whole

    @property
    def known_as(self) -> tuple[str, ...]:
        return self.space.names

    @property
    def source(self) -> Experience | None:
        return None

    def experiences(self) -> Sequence[Experience]:
        return [exp for exp, _ in self._parts]

    def test_sets(self) -> Sequence[TestSet]:
        return [test for _, test in self._parts]

    def stream(self) -> Sequence[TestSet]:
        return ()

    def timeline(self) -> Iterable[Experience | TestSet]:
        return self.experiences()

    def space_for(self, test: TestSet, seen: LabelSpace) -> LabelSpace:
        return Scenario.space_for(self, test, seen)

    def measurable(self, test: TestSet, seen: LabelSpace) -> bool:
        return Scenario.measurable(self, test, seen)

    def protocol(self) -> Mapping[str, Any]:
        return {**self.of.protocol(), "held_out": {"first": self.first, "share": self.share}}

    def notes(self) -> Sequence[str]:
        return ()


class Blind(Wrapper):
    """A test stream whose labels are gone: every image has the label of the first class, so that no count of right answers
    means anything and what the answers say by themselves is all there is. No clean test set is measured.

    Raises:
        UserError: where there is no stream, the scenario learns, or it hands labels to methods.
    """

    gives = frozenset()

    def __init__(self, of: Scenario) -> None:
        super().__init__(of)
        self.gives = frozenset(of.gives) - {"labels"}
        self.label_delay = None

    def stream(self) -> Sequence[TestSet]:
        return [replace(test, data=_erased(test.data, test.space.ids[0])) for test in self.of.stream()]

    def test_sets(self) -> Sequence[TestSet]:
        return ()

    def experiences(self) -> Sequence[Experience]:
        if len(self.of.experiences()):
            raise UserError(f"{type(self.of).__name__} learns; only a test stream can go without labels.")
        return ()

    @property
    def space(self) -> LabelSpace:
        return self.of.space

    def timeline(self) -> Iterable[Experience | TestSet]:
        return self.stream()

    def protocol(self) -> Mapping[str, Any]:
        return {**self.of.protocol(), "blind": True}


def _rows(data: Dataset, rows: Tensor) -> Dataset:
    return data.subset(rows) if isinstance(data, TensorData) else Subset(data, rows.tolist())


def _erased(data: Dataset, label: int) -> Dataset:
    if isinstance(data, TensorData):
        return TensorData(data.x, torch.full((len(data),), label))
    return _Erased(data, label)


class _Erased(Dataset[Any]):
    """The images of a data set that is read item by item, all with one label."""

    def __init__(self, data: Dataset, label: int) -> None:
        self._data, self._label = data, label
        self.y = torch.full((len(data),), label)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._data[index][0], self._label

"""Class-incremental learning over any labelled data set: the classes arrive a few at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from cl_bench import Experience, LabelSpace, Scenario, TestSet, UserError
from cl_bench.data.tensor import labels_of
from cl_bench.ranges import Count, LegacySeed, Whole
from cl_bench.types import Transform

from ._data import digest_of, pick

__all__: list[str] = []  # a base: `ClassIncremental` is for subclasses, not a name to run

Answers = Literal["seen", "task", "all"]


def class_order(order: int | Sequence[int] | None, classes: int) -> tuple[int, ...]:
    """The order in which ``classes`` classes arrive.

    None is the natural order; an int seeds numpy's legacy generator, ``RandomState(order).permutation(classes)``, the
    permutation that the field knows as "seed 1993"; a list is taken as it is.

    Raises:
        UserError: if a list is not a permutation of the classes.
    """
    if order is None:
        return tuple(range(classes))
    if isinstance(order, int):
        return tuple(int(i) for i in np.random.RandomState(order).permutation(classes))
    given = tuple(int(i) for i in order)
    if sorted(given) != list(range(classes)):
        raise UserError(f"order must list each of the classes 0..{classes - 1} once; it lists {len(given)} ids.")
    return given


def order_policy(order: int | Sequence[int] | None) -> str:
    """The policy, not the draw: runs over several seeded orders belong into one table."""
    if order is None:
        return "natural"
    return "RandomState(seed).permutation" if isinstance(order, int) else "listed"


def group_sizes(classes: int, base: int, increment: int) -> list[int]:
    """``base`` classes (``increment`` when 0), then ``increment`` at a time; a smaller last group is kept.

    Raises:
        UserError: if the sizes do not fit.
    """
    if increment < 1 or base < 0:
        raise UserError(f"increment must be at least 1 and base at least 0, not increment={increment}, base={base}.")
    first = base or increment
    if first > classes:
        raise UserError(f"the first experience asks for {first} classes, but there are {classes}.")
    sizes = [first]
    while sum(sizes) < classes:
        sizes.append(min(increment, classes - sum(sizes)))
    return sizes


class ClassIncremental(Scenario):
    """Class-incremental view of a labelled data set (base of the ``split_*`` scenarios).

    "B50 Inc10" is ``base=50, increment=10``; "B0 Inc10" is ``base=0, increment=10``. A last group with fewer classes
    is kept. ``answers="task"`` is the task-incremental view: the same data, each test set answered among its own
    classes. Label ids are the data set's own; only the order of arrival changes.

    Args:
        base: classes of the first experience; 0 = ``increment``.
        increment: classes of every later experience.
        order: None = natural; int = ``numpy.random.RandomState(order).permutation`` (PILOT: 1993); or a list.
        answers: ``seen`` (class-incremental) or ``task`` (task-incremental).
        per_class: only the first so many training images of every class; 0 = all.

    A subclass says ``classes``, ``class_names`` and :meth:`load`.
    """

    abstract: ClassVar[bool] = True
    family: ClassVar[str] = "class-incremental"
    classes: int = 0

    def __init__(
        self,
        *,
        base: Whole = 0,
        increment: Count = 10,
        order: LegacySeed | list[int] | None = None,
        answers: Answers = "seen",
        per_class: Whole = 0,
    ) -> None:
        self.base, self.increment, self.order, self.answers, self.per_class = base, increment, order, answers, per_class
        self._data: dict[str, Dataset] = {}

    # ------------------------------------------------------------------ what a data set says
    @abstractmethod
    def load(self, part: Literal["train", "test"]) -> Dataset:
        """The whole training or test data: a TensorData, or a data set with ``y`` (N,) and ``digest()``."""

    def class_names(self) -> tuple[str, ...]:
        """Names of the classes by id; empty when there are none."""
        return ()

    def number_of_classes(self) -> int:
        """How many classes there are; may read the data where only the data can tell."""
        return self.classes

    def augment(self) -> Transform | None:
        """The training augmentation, or None."""
        return None

    # ------------------------------------------------------------------ given
    @property
    def gives(self) -> frozenset[str]:  # type: ignore[override]
        """``boundaries``, ``names`` where the classes have names, ``task_id`` in the task-incremental view."""
        return gives_of(self.answers, bool(self.class_names()))

    @property
    def space(self) -> LabelSpace:
        return LabelSpace(*self._named(class_order(self.order, self.number_of_classes())))

    def groups(self) -> list[LabelSpace]:
        """The classes of every experience, in order."""
        order, out, start = class_order(self.order, self.number_of_classes()), [], 0
        for size in group_sizes(len(order), self.base, self.increment):
            out.append(LabelSpace(*self._named(order[start : start + size])))
            start += size
        return out

    def experiences(self) -> Sequence[Experience]:
        return self._experiences

    @cached_property
    def _experiences(self) -> list[Experience]:
        data = self._part("train")
        return [
            Experience(f"step {k + 1}", g, self._of(data, g, self.per_class), self.augment())
            for k, g in enumerate(self.groups())
        ]

    def test_sets(self) -> Sequence[TestSet]:
        return self._test_sets

    @cached_property
    def _test_sets(self) -> list[TestSet]:
        data = self._part("test")
        return [TestSet(f"step {k}", g, self._of(data, g, 0), of=f"step {k}") for k, g in enumerate(self.groups(), 1)]

    def protocol(self) -> Mapping[str, Any]:
        return {
            "data": {"train": digest_of(self._part("train")), "test": digest_of(self._part("test"))},
            "split": "classes",
            "increments": group_sizes(self.number_of_classes(), self.base, self.increment),
            "order_policy": order_policy(self.order),
            "per_class": self.per_class,
            "answers": self.answers,
            "augment": repr(self.augment()),
        }

    def _part(self, part: Literal["train", "test"]) -> Dataset:
        if part not in self._data:
            self._data[part] = self.load(part)
        return self._data[part]

    def _named(self, ids: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[str, ...]]:
        names = self.class_names()
        return ids, tuple(names[i] for i in ids) if names else ()

    def _of(self, data: Dataset, space: LabelSpace, per_class: int) -> Dataset:
        """The rows of ``data`` whose label is in ``space``, in the data's own order."""
        y = labels_of(data)
        rows = torch.nonzero(torch.isin(y, torch.tensor(space.ids))).flatten()
        if per_class:
            firsts = [rows[y[rows] == label][:per_class] for label in space]
            rows = torch.cat(firsts).sort().values
        return pick([data], rows)


def gives_of(answers: str, named: bool) -> frozenset[str]:
    """What a scenario with boundaries reveals: a task id exactly when each test set is answered on its own."""
    words = {"boundaries"} | ({"names"} if named else set()) | ({"task_id"} if answers == "task" else set())
    return frozenset(words)

"""A sequence of whole data sets with class names: what MTIL and X-TAIL share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch.utils.data import Dataset

from cl_bench import Experience, LabelSpace, Scenario, TestSet, UserError
from cl_bench.data.tensor import labels_of
from cl_bench.ranges import LegacySeed, Pixels, Seed, Whole

from ._data import Picked, digest_of, numbers
from ._files import need_root
from .split import Answers, class_order, order_policy


class Loaded(NamedTuple):
    """One data set: training and test data with labels from 0, and class names in their order."""

    train: Dataset
    test: Dataset
    names: tuple[str, ...]


class Shifted(Picked):
    """Rows of a data set, its labels moved by an offset."""

    def __init__(self, data: Dataset, rows: torch.Tensor, offset: int) -> None:
        super().__init__(data, labels_of(data), rows)
        self.offset, self.y = offset, self.y + offset

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)[:2]
        return x, int(y) + self.offset


class NamedSets(Scenario):
    """Data sets one after another; label ids count through them in the published order."""

    family: ClassVar[str] = "vision-language"
    gives: frozenset[str] = frozenset({"boundaries", "names"})
    orders: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    layout: ClassVar[str] = ""
    test_batch_size = 128

    def __init__(self, root: str, shots: Whole, seed: Seed, order: str | LegacySeed | list[int] | None, answers: Answers,
                 sets: list[str] | None, held_out: list[str] | None, size: Pixels) -> None:  # fmt: skip
        self._root = need_root(root, type(self).__name__, self.layout)
        self.root, self.shots, self.seed, self.answers, self.size = root, shots, seed, answers, size
        self.order, self.sets, self.held_out = order, sets, held_out  # type: ignore[assignment]
        if isinstance(order, str) and order not in self.orders:
            raise UserError(f"order {order!r}: use one of {', '.join(self.orders)}, a number, or a list.")
        if unknown := [s for s in sets or () if s not in self.published]:
            raise UserError(f"there is no set {unknown[0]!r}; use some of {', '.join(self.published)}.")
        known = tuple(n for n in self.published if sets is None or n in sets)
        if unknown := [s for s in held_out or () if s not in known]:
            raise UserError(f"held_out names {unknown[0]!r}, which is none of the sets {', '.join(known)}.")
        if not set(known) - set(held_out or ()):
            raise UserError(f"{type(self).__name__} teaches nothing: some of its sets must not be held_out.")
        if answers == "task":
            self.gives = type(self).gives | {"task_id"}
        self._loaded: dict[str, Loaded] = {}

    # ------------------------------------------------------------------ what a subclass says
    def load(self, name: str, root: Path) -> Loaded:
        """The data set, with what is missing told in a sentence."""
        raise NotImplementedError

    def templates(self, name: str) -> tuple[str, ...]:
        """Its sentences, the one for training first."""
        raise NotImplementedError

    # ------------------------------------------------------------------ given
    @property
    def published(self) -> tuple[str, ...]:
        """All sets in the first published order."""
        return next(iter(self.orders.values()))

    @property
    def ordered(self) -> tuple[str, ...]:
        """The sets that are taught, in the order of arrival."""
        if isinstance(self.order, str):
            names = self.orders[self.order]
        else:
            names = tuple(self.published[k] for k in class_order(self.order, len(self.published)))  # type: ignore[arg-type]
        return tuple(n for n in names if (self.sets is None or n in self.sets) and n not in (self.held_out or ()))

    @property
    def tested(self) -> tuple[str, ...]:
        """The sets that are taught, in the order of arrival, and those that nothing teaches."""
        return (*self.ordered, *dict.fromkeys(self.held_out or ()))

    def spaces(self) -> dict[str, LabelSpace]:
        """Each set's classes; ids count through the published order, so that they do not depend on the order of arrival."""
        found: dict[str, LabelSpace] = {}
        first = 0
        for name in self.published:
            if self.sets is None or name in self.sets:
                names = self._of(name).names
                found[name] = self.space_of(name, range(first, first + len(names)), names)
                first += len(names)
        return found

    def space_of(self, name: str, ids: Sequence[int], names: tuple[str, ...]) -> LabelSpace:
        """The label space of one set."""
        return LabelSpace(tuple(ids), names, self.templates(name))

    @property
    def space(self) -> LabelSpace:
        return self._joint(self.tested)

    def _joint(self, names: Sequence[str]) -> LabelSpace:
        whole = LabelSpace()
        spaces = self.spaces()
        for name in names:
            whole = whole | spaces[name]
        return whole

    def space_for(self, test: TestSet, seen: LabelSpace) -> LabelSpace:
        """A set that nothing teaches is answered among its own classes."""
        if not test.of or self.answers == "task":
            return test.space
        return self._joint(self.ordered) if self.answers == "all" else seen

    def experiences(self) -> Sequence[Experience]:
        spaces = self.spaces()
        return [Experience(n, spaces[n], Shifted(self._of(n).train, self._drawn(n), spaces[n].ids[0])) for n in self.ordered]

    def test_sets(self) -> Sequence[TestSet]:
        spaces = self.spaces()
        return [TestSet(n, spaces[n], Shifted(data, torch.arange(len(data)), spaces[n].ids[0]),  # type: ignore[arg-type]
                        of=n if n in self.ordered else "")
                for n in self.tested for data in (self._of(n).test,)]  # fmt: skip

    def protocol(self) -> Mapping[str, Any]:
        spaces = self.spaces()
        return {
            "data": {n: [digest_of(self._of(n).train), digest_of(self._of(n).test)] for n in sorted(self.tested)},
            "shots": self.shots, "draw": "first of a permutation per class, by seed", "size": self.size,
            "order_policy": self.order if isinstance(self.order, str) else order_policy(self.order),
            "names": {n: [*spaces[n].names] for n in sorted(self.tested)},
            "templates": {n: [*spaces[n].templates] for n in sorted(self.tested)},
            **({"held_out": sorted(self.held_out)} if self.held_out else {}),
        }  # fmt: skip

    def _of(self, name: str) -> Loaded:
        if name not in self._loaded:
            self._loaded[name] = self.load(name, self._root)
        return self._loaded[name]

    def _drawn(self, name: str) -> torch.Tensor:
        """Training rows: all, or ``shots`` of each class by seed."""
        y = labels_of(self._of(name).train)
        if not self.shots:
            return torch.arange(len(y))
        rows = [numbers("shots", self.seed, name, c).permutation((y == c).nonzero().flatten().numpy())[: self.shots]
                for c in range(len(self._of(name).names))]  # fmt: skip
        return torch.cat([torch.as_tensor(r, dtype=torch.int64) for r in rows])



"""Domain-incremental learning over any data: the classes stay, what they look like changes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cl_bench import Experience, LabelSpace, Scenario, TensorData, TestSet, UserError
from cl_bench.data.tensor import as_float, labels_of
from cl_bench.ranges import Seed
from cl_bench.types import Transform

from ._data import Deferred, digest_of, numbers
from .split import gives_of

__all__: list[str] = []  # a base: `DomainIncremental` is for subclasses, not a name to run

DomainAnswers = Literal["all", "task"]


class Relabelled(Dataset):
    """A data set with other labels."""

    def __init__(self, data: Dataset, y: Tensor) -> None:
        self.data, self.y = data, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.data[index][0], self.y[index]

    def digest(self) -> str:
        """16 hex digits over what the images are and their labels here."""
        return hashlib.sha256(digest_of(self.data).encode() + self.y.numpy().tobytes()).hexdigest()[:16]


def relabelled(data: Dataset, y: Tensor) -> Dataset:
    """``data`` with the labels ``y``; images that are made when looked at stay so."""
    if not isinstance(data, TensorData):
        return Relabelled(data, y)
    held: TensorData = data
    return Deferred(lambda: held.x, y)


class DomainIncremental(Scenario):
    """Domain-incremental learning (base): one experience per domain, every class in each, one test set per domain.

    ``answers="all"``: one classifier for all domains, no identity at test time. ``answers="task"`` is the task-incremental
    view of the same data: every domain has labels of its own, and a test set is answered among its domain's.

    A subclass says ``domains()``, ``class_names()`` and :meth:`load`.
    """

    abstract: ClassVar[bool] = True
    family: ClassVar[str] = "domain-incremental"

    def __init__(self, *, order: Seed | list[int] | None = None, answers: DomainAnswers = "all") -> None:
        self.order = order
        self.answers = answers
        self._raw: dict[tuple[str, str], Dataset] = {}
        self._data: dict[tuple[str, str], Dataset] = {}
        self.gives = gives_of(answers, True)

    # ------------------------------------------------------------------ what a data set says
    def domains(self) -> tuple[str, ...]:
        """Names of the domains in the published order."""
        raise NotImplementedError

    def class_names(self) -> tuple[str, ...]:
        """Names of the classes by id; may read folder names."""
        raise NotImplementedError

    def load(self, domain: str, part: Literal["train", "test"]) -> Dataset:
        """The labelled images of one domain."""
        raise NotImplementedError

    def augment(self) -> Transform | None:
        """The training augmentation, or None."""
        return None

    # ------------------------------------------------------------------ given
    def ordered(self) -> tuple[str, ...]:
        """Names of the domains in the order of learning.

        Raises:
            UserError: if a listed order is not a permutation.
        """
        names = self.domains()
        if self.order is None:
            return names
        if isinstance(self.order, int):
            return tuple(names[k] for k in numbers("domain order", self.order).permutation(len(names)))
        if sorted(self.order) != list(range(len(names))):
            raise UserError(f"order must list each of the domains 0..{len(names) - 1} once.")
        return tuple(names[k] for k in self.order)

    @property
    def space(self) -> LabelSpace:
        whole = LabelSpace()
        for domain in self.ordered() if self.answers == "task" else self.domains()[:1]:
            whole = whole | self.space_of(domain)
        return whole

    def space_of(self, domain: str) -> LabelSpace:
        """The classes of a domain: the same for all, or its own in the task-incremental view."""
        names = self.class_names()
        if self.answers == "all":
            return LabelSpace(tuple(range(len(names))), names)
        first = self.domains().index(domain) * len(names)
        return LabelSpace(tuple(range(first, first + len(names))), tuple(f"{n} ({domain})" for n in names))

    def experiences(self) -> Sequence[Experience]:
        return self._experiences

    @cached_property
    def _experiences(self) -> list[Experience]:
        return [Experience(d, self.space_of(d), self.part(d, "train"), self.augment()) for d in self.ordered()]

    def test_sets(self) -> Sequence[TestSet]:
        return self._test_sets

    @cached_property
    def _test_sets(self) -> list[TestSet]:
        return [TestSet(d, self.space_of(d), self.part(d, "test"), d, of=d) for d in self.ordered()]

    def part(self, domain: str, part: Literal["train", "test"]) -> Dataset:
        """A domain's data with the labels of its space."""
        if (domain, part) not in self._data:
            data = self.raw(domain, part)
            if self.answers == "task":
                data = relabelled(data, labels_of(data) + self.space_of(domain).ids[0])
            self._data[domain, part] = data
        return self._data[domain, part]

    def raw(self, domain: str, part: Literal["train", "test"]) -> Dataset:
        """What :meth:`load` gives, once."""
        if (domain, part) not in self._raw:
            self._raw[domain, part] = self.load(domain, part)
        return self._raw[domain, part]

    def facts(self) -> Mapping[str, Any]:
        """What identifies the data."""
        return {
            part: [digest_of(self.raw(d, part)) for d in self.domains()]  # type: ignore[arg-type]
            for part in ("train", "test")
        }

    def protocol(self) -> Mapping[str, Any]:
        policy = "published" if self.order is None else "random" if isinstance(self.order, int) else "listed"
        return {
            "data": dict(self.facts()),
            "split": "domains",
            "domains": list(self.domains()),
            "order_policy": policy,
            "answers": self.answers,
            "augment": repr(self.augment()),
        }


class TransformedDomains(DomainIncremental):
    """Domains that are functions of the same images (base); computed when first looked at, kept as uint8."""

    abstract: ClassVar[bool] = True

    def original(self, part: Literal["train", "test"]) -> TensorData:
        """The images that every domain transforms."""
        raise NotImplementedError

    def transform(self, x: Tensor, domain: str) -> Tensor:
        """Images float (N, 3, H, W) in [0, 1] to those of a domain, the same at every call."""
        raise NotImplementedError

    def load(self, domain: str, part: Literal["train", "test"]) -> Dataset:
        plain = self.original(part)

        def make() -> Tensor:
            parts = [self.transform(as_float(chunk), domain) for chunk in plain.x.split(1000)]
            return torch.cat([p.clamp(0, 1).mul(255).round_().to(torch.uint8) for p in parts])

        return Deferred(make, plain.y)

    def facts(self) -> Mapping[str, Any]:
        return {part: digest_of(self.original(part)) for part in ("train", "test")}  # type: ignore[arg-type]

"""Ground floor: the frozen records that scenarios hand out and methods receive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # torch costs two seconds to import; the records themselves need none of it
    from torch import Generator, Tensor
    from torch.utils.data import Dataset

    Transform = Callable[[Tensor, Generator], Tensor]
else:
    Dataset = Tensor = Transform = Any

__all__ = ["Batch", "Experience", "LabelSpace", "StreamFacts", "TestSet", "Transform"]


class Batch(NamedTuple):
    """Images ``x`` float32 (N, 3, H, W) in [0, 1] and global label ids ``y`` int64 (N,)."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True, slots=True)
class LabelSpace:
    """An ordered set of classes. ``ids`` are global to a scenario; ``names`` are theirs, or empty.

    ``a | b`` keeps the order of ``a`` and appends what is new in ``b``; ``a - b`` keeps the order of what is left. Names
    stay with their ids.

    Attributes:
        ids: global label ids.
        names: of the ids, in their order; () where they have none.
        templates: sentences with ``{}`` for a name, by which a text head reads the names; () = the head's own.
    """

    ids: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", tuple(int(i) for i in self.ids))
        object.__setattr__(self, "names", tuple(str(n) for n in self.names))
        object.__setattr__(self, "templates", tuple(str(t) for t in self.templates))
        if len(set(self.ids)) != len(self.ids):
            raise ValueError(f"a label space lists an id twice: {self.ids}")
        if self.names and len(self.names) != len(self.ids):
            raise ValueError(f"{len(self.ids)} ids but {len(self.names)} names")
        for template in self.templates:
            if not takes_name(template):
                raise ValueError(f"a template has {{}} where the name goes, once and no other brace; {template!r} has not")

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids)

    def __contains__(self, label: object) -> bool:
        return label in self.ids

    def __or__(self, other: LabelSpace) -> LabelSpace:
        known = set(self.ids)
        new = [k for k, i in enumerate(other.ids) if i not in known]
        ids = self.ids + tuple(other.ids[k] for k in new)
        templates = self.templates + tuple(t for t in other.templates if t not in self.templates)
        if (self.names or not self.ids) and (other.names or not other.ids):
            return LabelSpace(ids, self.names + tuple(other.names[k] for k in new), templates)
        return LabelSpace(ids, (), templates)

    def __sub__(self, other: LabelSpace) -> LabelSpace:
        gone = set(other.ids)
        left = [k for k, i in enumerate(self.ids) if i not in gone]
        names = tuple(self.names[k] for k in left) if self.names else ()
        return LabelSpace(tuple(self.ids[k] for k in left), names, self.templates)


def takes_name(template: str) -> bool:
    """Whether a sentence has one ``{}``, where a name goes, and no other brace, which ``str.format`` would stumble over."""
    return template.count("{}") == 1 and not {"{", "}"} & set(template.replace("{}", ""))


@dataclass(frozen=True, slots=True)
class Experience:
    """All that a method may see of one step of learning. Holds no test data.

    Attributes:
        name: unique within the scenario.
        space: the classes that occur here.
        data: items ``(x, y)``: x uint8 (3, H, W) or float in [0, 1], y a global label id.
        augment: batched training augmentation ``(x (N, 3, H, W) in [0, 1], generator) -> x``, or None.
    """

    name: str
    space: LabelSpace
    data: Dataset
    augment: Transform | None = None


@dataclass(frozen=True, slots=True)
class TestSet:
    """Held-out data that only the engine sees: a method never holds one, nor does its Trainer.

    Attributes:
        name: unique among the scenario's test sets, or position in a stream ("fog", "fog@2", ...).
        space: the classes that occur here.
        data: items ``(x, y)`` like an experience's.
        domain: what the online error is grouped by; the name when empty.
        rows: for streams that mix domains, the domain of every row: (names, codes int (N,)).
        batch_size: how many images arrive at once; 0 = the scenario's own.
        of: the experience, by name, that teaches what is asked here: what makes forgetting of this test set defined. Empty
            where no single one does (a test set shared by all domains, a stream's segment).
    """

    __test__ = False  # not a pytest class

    name: str
    space: LabelSpace
    data: Dataset
    domain: str = ""
    rows: tuple[tuple[str, ...], Any] | None = None
    batch_size: int = 0
    of: str = ""


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """What a deployed method is told of the stream to come: how its images arrive, and nothing of what they are.

    Attributes:
        batch_size: how many images arrive at once (the last batch of a domain may be smaller).
        space: the classes among which answers will be asked for first.
    """

    batch_size: int = 64
    space: LabelSpace = LabelSpace()

"""The contract of a scenario: what is learned, what is measured, what streams by, and what of it is revealed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from .errors import UserError
from .ranges import bounded
from .types import Experience, LabelSpace, TestSet

__all__ = ["Scenario", "Wrapper"]


class Scenario:
    """A stream of experiences to learn, test sets to measure on, and an unlabelled test stream to survive.

    A scenario is a description: constructing one reads no data and draws no random number; its three sequences may be
    walked again and again and give the same thing each time. It never knows which method it feeds.

    A scenario of pure learning has ``experiences`` and ``test_sets``; a pure test-time stream has ``stream`` (and
    usually one clean test set, by which forgetting of the source is measured); deployed learning overrides
    :meth:`timeline` and has both.

    Everything that it reveals is a field below, with its default; a subclass sets it on the class, on itself in its
    constructor, or as a property. Another scenario is changed from outside by a :class:`Wrapper`.

    Attributes:
        gives: what it reveals to a method beyond images and training labels. A method whose ``needs`` are not all
            given is refused before any work. Known words: ``boundaries`` (where one experience ends), ``names`` (class
            names), ``source`` (the source's labelled training data), ``task_id`` (which experience a test image belongs
            to), ``labels`` (late labels of the stream).
        answers: among which classes a method must choose. ``seen``: all classes seen so far (class-incremental);
            ``task``: the test set's own classes (task-incremental); ``all``: every class of the scenario
            (domain-incremental, test-time streams).
        reset: what the runner does in the stream: ``never``, before every ``domain``, or before every ``batch``.
        stream_speed: a stream that does not wait: how many batches come while the plain model answers one (Alfarra et
            al.'s eta, at most 1); None = it waits for the method.
        label_delay: how many batches late the labels of the stream arrive, where ``gives`` has ``labels``; None = never.
        order: the order of classes or domains: None = the natural one, a number = the seed of a drawn one, or a list.
            A number is kept in the record, so that runs over several orders stand in one table.
        draws: whether :meth:`drawn` gives another order of images at each visit.
        test_batch_size: how many test images arrive at once.
        max_epochs: a cap on passes over an experience (1 for online scenarios), or None.
        backbone: the registered backbone that a run uses when none is named.
        subject: what its images are, where weights that saw letters alone say little about them: "photographs"; "" = no such
            thing.
        places: parameters that say where files lie, not what is in them, beside those that are called so (``root``,
            ``..._path``; see :mod:`cl_bench.identity`): no label, folder name or fingerprint holds them.
    """

    family: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    places: ClassVar[frozenset[str]] = frozenset()

    gives: frozenset[str] = frozenset({"boundaries"})
    answers: Literal["seen", "task", "all"] = "seen"
    reset: Literal["never", "domain", "batch"] = "never"
    stream_speed: float | None = None
    label_delay: int | None = None
    order: int | Sequence[int] | None = None
    draws: bool = False
    test_batch_size: int = 256
    max_epochs: int | None = None
    backbone: str = "glyph_vit"
    subject: str = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        bounded(cls)

    @property
    def space(self) -> LabelSpace:
        """Every class of the scenario."""
        whole = LabelSpace()
        parts: list[Experience | TestSet] = [*self.experiences(), *self.test_sets(), *self.stream()]
        for part in parts:
            whole = whole | part.space
        return whole

    @property
    def known_as(self) -> tuple[str, ...]:
        """What the classes of ``space`` are called in the data, in its order, whether or not methods are told (``gives``
        "names"): by it the engine sees whether a classifier that came with weights answers for them. () = unknown."""
        return self.space.names

    @property
    def source(self) -> Experience | None:
        """Labelled source data for a classifier trained before the stream: an explicit, recorded privilege."""
        return None

    def experiences(self) -> Sequence[Experience]:
        """What is learned, in order."""
        return ()

    def test_sets(self) -> Sequence[TestSet]:
        """What is measured after every experience: the columns of the accuracy matrix."""
        return ()

    def stream(self) -> Sequence[TestSet]:
        """The unlabelled test stream, in order of arrival."""
        return ()

    def drawn(self, visit: int) -> Sequence[TestSet]:
        """The stream at its ``visit``-th coming (1, 2, ...): the same each time unless the scenario ``draws``."""
        return self.stream()

    @property
    def severities(self) -> tuple[int, ...]:
        """At which severities :meth:`at` gives the stream: 1 to 5 where a scenario defines it, else none."""
        return (1, 2, 3, 4, 5) if type(self).at is not Scenario.at else ()

    def at(self, severity: int, visit: int = 1) -> Sequence[TestSet]:
        """The stream at another severity; a scenario that ``draws`` is asked for its ``visit``-th coming, another one is
        called with the severity alone.

        Raises:
            UserError: if it has none, which is the default.
        """
        raise UserError(f"{type(self).__name__} has no severities; wrap a stream of corruptions.")

    def timeline(self) -> Iterable[Experience | TestSet]:
        """Everything that happens, in order; by default learn all, then face the stream."""
        yield from self.experiences()
        yield from self.stream()

    @property
    def interleaves(self) -> bool:
        """Whether learning and streaming alternate: its stream is then no whole that could arrive otherwise."""
        return type(self).timeline is not Scenario.timeline

    def space_for(self, test: TestSet, seen: LabelSpace) -> LabelSpace:
        """The classes among which ``test`` is answered once ``seen`` have been learned."""
        if self.answers == "task":
            return test.space
        return self.space if self.answers == "all" else seen

    def measurable(self, test: TestSet, seen: LabelSpace) -> bool:
        """Whether every image of ``test`` could be answered right once ``seen`` have been learned: its classes are all
        among them, and among those that the view lets a method choose from. Other cells are left unmeasured in every
        view; a head that answers for classes it never learned counts those as seen."""
        return set(test.space.ids) <= set(seen.ids) & set(self.space_for(test, seen).ids)

    def protocol(self) -> Mapping[str, Any]:
        """Plain facts that two runs must share to stand in one table, for the fingerprint: data digests, split, the
        policy (not the draw) of the class order, anything else that changes what a number means. Content, not places:
        the same files in another folder are the same data."""
        return {}

    def notes(self) -> Sequence[str]:
        """Sentences about the data for the record's warnings: classes without test images, images left out (counted)."""
        return ()


# The contract's fields, listed once: a wrapper passes each of them on.
FIELDS = tuple(name for name, kind in Scenario.__annotations__.items() if not str(kind).startswith("ClassVar"))


class _PassedOn:
    """A field as the wrapped scenario has it, unless the wrapper's class or the wrapper itself says otherwise."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, wrapper: Wrapper | None, owner: type) -> Any:
        return self if wrapper is None else getattr(wrapper.of, self.name)


class Wrapper(Scenario):
    """Another scenario, changed in what a subclass says and the same in everything else.

    Every field and method of the contract is that of ``of``; a subclass overrides what it changes, with a class
    attribute, an attribute set in its constructor, a property or a method. Wrappers nest in any order::

        class Hurried(Wrapper):
            stream_speed = 1.0

        Hurried(Online(LabelDelay(DigitsC())))

    What follows from an overridden part follows it: another ``stream`` changes the timeline and each later coming,
    another ``answers`` the classes to choose from.

    Args:
        of: the scenario that is wrapped.
    """

    def __init__(self, of: Scenario) -> None:
        self.of = of

    @property
    def space(self) -> LabelSpace:
        return self.of.space

    @property
    def known_as(self) -> tuple[str, ...]:
        return self.of.known_as

    @property
    def source(self) -> Experience | None:
        return self.of.source

    def experiences(self) -> Sequence[Experience]:
        return self.of.experiences()

    def test_sets(self) -> Sequence[TestSet]:
        return self.of.test_sets()

    def stream(self) -> Sequence[TestSet]:
        return self.of.stream()

    def drawn(self, visit: int) -> Sequence[TestSet]:
        return self.of.drawn(visit) if type(self).stream is Wrapper.stream else self.stream()

    @property
    def severities(self) -> tuple[int, ...]:
        return self.of.severities

    def at(self, severity: int, visit: int = 1) -> Sequence[TestSet]:
        return self.of.at(severity, visit) if self.of.draws else self.of.at(severity)

    def timeline(self) -> Iterable[Experience | TestSet]:
        return self.of.timeline() if self.of.interleaves else super().timeline()

    @property
    def interleaves(self) -> bool:
        return type(self).timeline is not Wrapper.timeline or self.of.interleaves

    def space_for(self, test: TestSet, seen: LabelSpace) -> LabelSpace:
        return self.of.space_for(test, seen) if self.answers == self.of.answers else super().space_for(test, seen)

    def measurable(self, test: TestSet, seen: LabelSpace) -> bool:
        return self.of.measurable(test, seen) and super().measurable(test, seen)

    def protocol(self) -> Mapping[str, Any]:
        return self.of.protocol()

    def notes(self) -> Sequence[str]:
        return self.of.notes()


for _name in FIELDS:
    setattr(Wrapper, _name, _PassedOn(_name))
del _name

"""The contract of a scenario: what is learned, what is measured, what streams by, and what of it is revealed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from .types import Experience, LabelSpace, TestSet

__all__ = ["Scenario"]


class Scenario:
    """A stream of experiences to learn, test sets to measure on, and an unlabelled test stream to survive.

    A scenario is a description: constructing one reads no data and draws no random number; its three sequences may be
    walked again and again and give the same thing each time. It never knows which method it feeds.

    A scenario of pure learning has ``experiences`` and ``test_sets``; a pure test-time stream has ``stream`` (and
    usually one clean test set, by which forgetting of the source is measured); deployed learning overrides
    :meth:`timeline` and has both.

    Attributes:
        gives: what it reveals to a method beyond images and training labels. A method whose ``needs`` are not all
            given is refused before any work. Known words: ``boundaries`` (where one experience ends), ``names`` (class
            names), ``source`` (the source's labelled training data), ``task_id`` (which experience a test image belongs
            to), ``labels`` (late labels of the stream).
        answers: among which classes a method must choose. ``seen``: all classes seen so far (class-incremental);
            ``task``: the test set's own classes (task-incremental); ``all``: every class of the scenario
            (domain-incremental, test-time streams).
        reset: what the runner does in the stream: ``never``, before every ``domain``, or before every ``batch``.
        test_batch_size: how many test images arrive at once.
        backbone: the registered backbone that a run uses when none is named.
        max_epochs: a cap on passes over an experience (1 for online scenarios), or None.
    """

    gives: ClassVar[frozenset[str]] = frozenset({"boundaries"})
    family: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    backbone: ClassVar[str] = "glyph_vit"
    answers: Literal["seen", "task", "all"] = "seen"
    reset: Literal["never", "domain", "batch"] = "never"
    test_batch_size: int = 256
    max_epochs: int | None = None

    @property
    def space(self) -> LabelSpace:
        """Every class of the scenario."""
        whole = LabelSpace()
        parts: list[Experience | TestSet] = [*self.experiences(), *self.test_sets(), *self.stream()]
        for part in parts:
            whole = whole | part.space
        return whole

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

    def timeline(self) -> Iterable[Experience | TestSet]:
        """Everything that happens, in order; by default learn all, then face the stream."""
        yield from self.experiences()
        yield from self.stream()

    def space_for(self, test: TestSet, seen: LabelSpace) -> LabelSpace:
        """The classes among which ``test`` is answered once ``seen`` have been learned."""
        if self.answers == "task":
            return test.space
        return self.space if self.answers == "all" else seen

    def protocol(self) -> Mapping[str, Any]:
        """Plain facts that two runs must share to stand in one table, for the fingerprint: data digests, split, the
        policy (not the draw) of the class order, anything else that changes what a number means."""
        return {}

"""The base of every scenario that lets another one's stream arrive differently."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from cl_bench import Experience, LabelSpace, Scenario, TestSet, UserError

from ._data import Shelf
from .digits_c import DigitsC


class StreamWrapper(Scenario):
    """Another arrival of the stream of ``of``; everything else is passed on.

    A subclass overrides :meth:`rearrange`. Wrappers compose: ``Recurring(Correlated(DigitsC()))`` meets the correlated
    stream again and again, drawn anew at each visit.
    """

    family: ClassVar[str] = "test-time stream"
    reorders: ClassVar[bool] = False  # True: draws an order of images, anew at every visit

    def __init__(self, of: Scenario | None = None) -> None:
        if of is None:
            of = DigitsC()
        if type(of).timeline is not Scenario.timeline:
            raise UserError(
                f"{type(of).__name__} interleaves learning and streaming by itself; wrap the stream it is built from."
            )
        self.of = of
        passed_on = ["gives", "answers", "reset", "test_batch_size", "max_epochs", "order", "backbone"]
        passed_on += ["label_delay", "stream_speed"]
        self.__dict__.update({key: getattr(of, key) for key in passed_on if hasattr(of, key)})
        self._shelf = Shelf(2)  # the views in use; made again from `of` when the stream comes back to them
        self._drawn: dict[int, tuple[TestSet, ...]] = {}

    # what a subclass says
    def rearrange(self, tests: Sequence[TestSet], visit: int) -> Sequence[TestSet]:
        """The new stream, from the old one; random draws depend on the seed and the number of the visit (1, 2, ...)."""
        return tests

    def drawn(self, visit: int) -> Sequence[TestSet]:
        """The stream as it is drawn at its ``visit``-th coming."""
        if visit not in self._drawn:
            self._drawn[visit] = tuple(self.rearrange(drawn(self.of, visit), visit))
        return self._drawn[visit]

    def at(self, severity: int) -> Sequence[TestSet]:
        """The stream at another severity.

        Raises:
            UserError: if what is wrapped has no severities.
        """
        return tuple(self.rearrange(at_severity(self.of, severity), 1))

    def stream(self) -> Sequence[TestSet]:
        return self.drawn(1)

    # what is passed on
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

    def space_for(self, test: TestSet, seen: LabelSpace) -> LabelSpace:
        return self.of.space_for(test, seen)

    def protocol(self) -> Mapping[str, Any]:
        inner = dict(self.of.protocol())
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        facts = {name: getattr(self, name) for name in names if name not in ("of", "seed")}
        arrival = [*inner.get("arrival", []), {"kind": type(self).__name__, **facts}]
        return {**inner, "arrival": arrival, "reset": self.reset, "test_batch_size": self.test_batch_size}


def drawn(scenario: Scenario, visit: int) -> Sequence[TestSet]:
    """The stream of ``scenario`` at its ``visit``-th coming: drawn anew where it draws at all.

    Raises:
        UserError: if it has no test-time stream.
    """
    again = getattr(scenario, "drawn", None)
    tests = scenario.stream() if again is None else again(visit)
    if not tests:
        raise UserError(f"{type(scenario).__name__} has no test-time stream to rearrange; wrap one that streams.")
    return tests


def draws(scenario: Scenario) -> bool:
    """Whether a stream is another one at each visit."""
    return isinstance(scenario, StreamWrapper) and (scenario.reorders or draws(scenario.of))


def at_severity(scenario: Scenario, severity: int) -> Sequence[TestSet]:
    """The stream of ``scenario`` at a severity.

    Raises:
        UserError: if it has no severities.
    """
    at = getattr(scenario, "at", None)
    if at is None:
        raise UserError(f"{type(scenario).__name__} has no severities; a gradual stream needs corruptions.")
    return at(severity)

"""The base of every scenario that lets another one's stream arrive differently."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from cl_bench import Scenario, TestSet, UserError, Wrapper
from cl_bench.identity import arguments

from ._data import Shelf
from .digits_c import DigitsC


class StreamWrapper(Wrapper):
    """Another arrival of the stream of ``of``; everything else is passed on.

    A subclass overrides :meth:`rearrange`, and sets ``draws`` where that draws an order of images. Wrappers compose:
    ``Recurring(Correlated(DigitsC()))`` meets the correlated stream again and again, drawn anew at each visit.
    """

    family: ClassVar[str] = "test-time stream"

    def __init__(self, of: Scenario | None = None) -> None:
        if of is None:
            of = DigitsC()
        if of.interleaves:
            raise UserError(
                f"{type(of).__name__} interleaves learning and streaming by itself; wrap the stream it is built from."
            )
        super().__init__(of)
        self._shelf = Shelf(2)  # the views in use; made again from `of` when the stream comes back to them
        self._drawn: dict[int, tuple[TestSet, ...]] = {}

    # what a subclass says
    def rearrange(self, tests: Sequence[TestSet], visit: int) -> Sequence[TestSet]:
        """The new stream, from the old one; random draws depend on the seed and the number of the visit (1, 2, ...)."""
        return tests

    # what follows
    def drawn(self, visit: int) -> Sequence[TestSet]:
        if visit not in self._drawn:
            self._drawn[visit] = tuple(self.rearrange(coming(self.of, visit), visit))
        return self._drawn[visit]

    def at(self, severity: int, visit: int = 1) -> Sequence[TestSet]:
        return tuple(self.rearrange(at_visit(self.of, severity, visit), visit))

    @property
    def rearranges(self) -> bool:
        """Whether other images, or images in another order, come; else only pace and resets differ."""
        return type(self).rearrange is not StreamWrapper.rearrange or type(self).drawn is not StreamWrapper.drawn

    def stream(self) -> Sequence[TestSet]:
        return self.drawn(1)

    def protocol(self) -> Mapping[str, Any]:
        inner = dict(self.of.protocol())
        names = [name for name in inspect.signature(type(self)).parameters if name not in ("of", "seed")]
        facts = arguments(type(self), {name: getattr(self, name) for name in names}, self.places)
        arrival = [*inner.get("arrival", []), {"kind": type(self).__name__, **facts}]
        return {**inner, "arrival": arrival, "reset": self.reset, "test_batch_size": self.test_batch_size}


def rearranged(scenario: Scenario) -> StreamWrapper | None:
    """The outermost wrapper inside ``scenario`` that orders images, if any."""
    while isinstance(scenario, Wrapper):
        if isinstance(scenario, StreamWrapper) and scenario.rearranges:
            return scenario
        scenario = scenario.of
    return None


def at_visit(scenario: Scenario, severity: int, visit: int) -> Sequence[TestSet]:
    """The stream of ``scenario`` at a severity, at its ``visit``-th coming where it draws at all."""
    return scenario.at(severity, visit) if scenario.draws else scenario.at(severity)


def coming(scenario: Scenario, visit: int) -> Sequence[TestSet]:
    """The stream of ``scenario`` at its ``visit``-th coming.

    Raises:
        UserError: if it has no test-time stream.
    """
    tests = scenario.drawn(visit)
    if not tests:
        raise UserError(f"{type(scenario).__name__} has no test-time stream to rearrange; wrap one that streams.")
    return tests

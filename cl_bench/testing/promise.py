"""A promise of the contract: its name, who makes it, and the question that finds out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..method import Method
from .trial import Trial, streams

__all__ = ["Promise", "adapting", "anyone", "deployed", "learner", "promise", "steady"]

When = Callable[[type[Method]], bool]


@dataclass(frozen=True)
class Promise:
    """``ask`` returns a sentence that says what is wrong, or None; ``when`` says which methods make it."""

    name: str
    ask: Callable[[Trial], str | None]
    when: When


def anyone(cls: type[Method]) -> bool:
    """Every method."""
    return True


def adapting(cls: type[Method]) -> bool:
    """Methods whose ``predict`` changes them."""
    return cls.adapts


def steady(cls: type[Method]) -> bool:
    """Methods whose ``predict`` changes nothing."""
    return not cls.adapts


def deployed(cls: type[Method]) -> bool:
    """Methods with something of their own to do in a test stream."""
    return streams(cls)


def learner(cls: type[Method]) -> bool:
    """Methods that do nothing but learn and answer."""
    return not streams(cls)


def promise(into: list[Promise], name: str, when: When = anyone) -> Callable[[Callable[[Trial], str | None]],
                                                                             Callable[[Trial], str | None]]:
    """Registers a question under the name by which a method may be exempt from it."""
    def kept(ask: Callable[[Trial], str | None]) -> Callable[[Trial], str | None]:
        into.append(Promise(name, ask, when))
        return ask

    return kept

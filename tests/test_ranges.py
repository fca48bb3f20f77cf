"""Ranges in signatures: what a constructor refuses, and that every registered class states them for every number it takes."""

from __future__ import annotations

import inspect
import math
from typing import Any, Literal

import pytest

from cl_bench.errors import UserError
from cl_bench.ranges import (
    Amount,
    Count,
    LegacySeed,
    Positive,
    Seed,
    Share,
    Size,
    Text,
    Whole,
    bounded,
    hints,
    kinds,
    refusal,
)
from cl_bench.registry import GROUPS, entries, find

EVERY = [(group, name) for kind, group in GROUPS.items() if kind != "metrics" for name in entries(group)]


@pytest.mark.parametrize(("hint", "value", "said"), [
    (Count, 0, "at least 1, not 0"), (Count, -3, "at least 1"), (Whole, -1, "at least 0"), (Size, 10**9, "at most 65536"),
    (Count, True, "a number, not True"), (Count, 2.0, "a whole number, not 2"), (Share, 1.5, "at most 1, not 1.5"),
    (Share | None, math.nan, "a finite number, not nan"), (Amount, math.inf, "a finite number"),
    (Positive, 0.0, "above 0, not 0"),
    (Positive, -1, "above 0"), (Seed, -1, "at least 0"), (Seed, 2**64, "at most 9223372036854775807"),
    (LegacySeed | list[int] | None, -3, "at least 0"), (LegacySeed | list[int] | None, 2**32, "at most 4294967295"),
    (list[int], [1, 10**30], "at most 9223372036854775807, not a number of more than 20 digits"), (int, 10**4000, "at most"),
    (float, math.nan, "a finite number"), (tuple[float, ...], (0.0, math.inf), "a finite number"),
    (dict[str, Any], {"a": [{"b": math.nan}]}, "a finite number"),
    (Text, " ", "not be empty"), (Text | None, "", "not be empty"),
])
def test_what_is_refused(hint: Any, value: object, said: str) -> None:
    why = refusal("x", hint, value)
    assert why is not None and why.startswith("x") and said in why and why.endswith(".")


@pytest.mark.parametrize(("hint", "value"), [
    (Count, 1), (Whole, 0), (Share, 0), (Share, 1.0), (Share | None, None), (Amount, 0), (Seed, 2**63 - 1), (Size, 2**16),
    (LegacySeed | list[int] | None, [3, 1]), (int, -5), (float, -1e300), (str, ""), (Text, "a"), (bool, True),
    (Literal[20, 32], 20), (Any, "x"), (dict[str, Any], {"a": True}),
])
def test_what_is_taken(hint: Any, value: object) -> None:
    assert refusal("x", hint, value) is None


def test_a_class_and_a_function_refuse_before_their_first_line() -> None:
    ran = []

    @bounded
    class Held:
        def __init__(self, rank: Size = 8, *, share: Share | None = None) -> None:
            ran.append(rank)

    @bounded
    def made(*, seed: Seed = 0) -> int:
        ran.append(seed)
        return seed

    with pytest.raises(UserError, match=r"^rank must be at least 1, not -2\.$"):
        Held(-2)
    with pytest.raises(UserError, match=r"^share must be at most 1, not 2\.$"):
        Held(share=2.0)
    with pytest.raises(UserError, match=r"^seed must be at least 0, not -1\.$"):
        made(seed=-1)
    with pytest.raises(TypeError, match="unexpected keyword"):
        made(sede=1)  # type: ignore[call-arg]
    assert not ran and Held(3) and made(seed=4) == 4 and ran == [3, 4]
    assert list(inspect.signature(Held).parameters) == ["rank", "share"]


@pytest.mark.parametrize(("group", "name"), EVERY, ids=lambda v: v.rpartition(".")[2])
def test_every_whole_number_of_a_registered_class_has_its_range(group: str, name: str) -> None:
    """A parameter without one would take -3 or 10**18 until something breaks far inside."""
    target = find(group, name)
    known = hints(target)
    for parameter in inspect.signature(target).parameters.values():
        if parameter.name not in ELSEWHERE and parameter.name in known:
            marks = [mark for kind, mark in kinds(known[parameter.name]) if kind is int]
            assert not marks or any(marks), f"{name}: {parameter.name} takes any whole number"
            assert parameter.default is parameter.empty or refusal(
                parameter.name, known[parameter.name], parameter.default) is None, f"{name} refuses its own default"
    assert {p.name for p in inspect.signature(target).parameters.values()} - set(known) <= {"backbone"}


# "index" and "count" come from ``attach``; a severity outside 1 to 5 is refused by a sentence of its own.
ELSEWHERE = ("index", "count", "severity")

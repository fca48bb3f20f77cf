"""Grids: the values that an option takes in turn, as words (``4,8,16``, ``0..4``, ``1e-4..1e-1:log4``) or as YAML lists."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import UserError
from .files import brief, yaml_value
from .typed import Word

__all__ = ["Axis", "axes_of", "cells", "grid_options", "seeds_of", "values_of"]

MOST = 100_000  # runs of one suite
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(?::(.*))?\Z")
_FORMS = "list values (4,8,16), or give a range: 0..4, 0..1:0.25, 0..1:lin5, 1e-4..1e-1:log4"

Axis = tuple[str, list[Any]]  # ("method.rank", [4, 8, 16])


def values_of(name: str, given: Any) -> list[Any]:
    """The values of one axis, in order.

    Args:
        name: what a sentence calls it.
        given: a YAML list (its strings may be ranges), one value, or text as on a command line.

    Raises:
        UserError: for a range that is none, or a value that stands twice.
    """
    if isinstance(given, Mapping) or given is None:
        raise UserError(f"{name} must {_FORMS}; not {brief(given)}.")
    items: list[Any] = given if isinstance(given, list) else _split(str(given)) if isinstance(given, str) else [given]
    found: list[Any] = []
    for item in items:
        if isinstance(item, str):
            text = item.strip()
            if not text:
                raise UserError(f"{name} holds an empty value: {_FORMS}.")
            match = _RANGE.match(text)
            found += [Word(text)] if match is None else _range(name, text, *match.groups())
        else:
            found.append(item)
        if len(found) > MOST:
            raise UserError(f"{name} has more than {MOST:,} values; take fewer.")
    if not found:
        raise UserError(f"{name} is empty: {_FORMS}.")
    seen: set[str] = set()
    for value in found:
        if (text := repr(_plain(value))) in seen:
            raise UserError(f"{name} holds {brief(_plain(value))} twice.")
        seen.add(text)
    return found


def _plain(value: Any) -> Any:
    """A word as YAML reads it, so that 4 and "4" are one value."""
    try:
        return yaml_value(str(value), "") if isinstance(value, Word) else value
    except UserError:
        return str(value)


def _split(text: str) -> list[str]:
    """At the commas that stand in no bracket and no quotes: ``[a, b],[c]`` are two lists."""
    parts, depth, quote = [""], 0, ""
    for c in text:
        if quote:
            quote = "" if c == quote else quote
        elif c in "\"'":
            quote = c
        depth += (c in "[{") - (c in "]}") if not quote else 0
        if c == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += c
    return parts


def _range(name: str, text: str, first: str, last: str, step: str | None) -> list[Word]:
    whole = all(re.fullmatch(r"[-+]?\d+", end) for end in (first, last))
    low, high = float(first), float(last)
    if math.isinf(low) or math.isinf(high) or low >= high:
        raise UserError(f"{name}: {text} must go from the smaller to the larger finite number.")
    spaced = re.fullmatch(r"(log|lin)(\d+)", step or "")
    if spaced is not None:
        count = int(spaced[2][:9])
        if not 2 <= count <= MOST:
            raise UserError(f"{name}: {text} must have at least two values and at most {MOST:,}.")
        if spaced[1] == "log" and low <= 0:
            raise UserError(f"{name}: a log range such as {text} must begin above 0.")
        ends = (math.log(low), math.log(high)) if spaced[1] == "log" else (low, high)
        between = [ends[0] + (ends[1] - ends[0]) * k / (count - 1) for k in range(1, count - 1)]
        found = [low, *(math.exp(x) if spaced[1] == "log" else x for x in between), high]
    else:
        if step is None and not whole:
            raise UserError(f"{name}: {text} needs a step or a count, such as {first}..{last}:lin5 or "
                            f"{first}..{last}:log4.")
        if step is not None and re.fullmatch(_NUMBER, step) is None:
            raise UserError(f"{name}: {text} ends in {brief(step)}; write a step (0..1:0.25), linN or logN.")
        size = 1.0 if step is None else float(step)
        whole = whole and (step is None or re.fullmatch(r"\+?\d+", step) is not None)
        if not 0 < size <= high - low:
            raise UserError(f"{name}: the step of {text} must be above 0 and fit into the range.")
        if (count := math.floor((high - low) / size + 1e-9) + 1) > MOST:
            raise UserError(f"{name}: {text} has more than {MOST:,} values; take fewer.")
        found = [low + k * size for k in range(count)]
    rounded = [float(f"{x:.12g}") for x in found]
    if whole and all(x == round(x) for x in rounded):
        return [Word(int(x)) for x in rounded]
    return [Word(f"{x:.12g}") for x in rounded]


def grid_options(words: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUES`` of every ``--grid``.

    Raises:
        UserError: for a word that is no such pair, or a key that stands twice.
    """
    found: dict[str, Any] = {}
    for word in words:
        key, equals, values = word.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--grid {brief(word)} must be an option and its values, such as --grid method.rank=4,8,16 or "
                            "--grid seed=0..4.")
        if (key := key.strip().removeprefix("--")) in found:
            raise UserError(f"--grid {key} is given twice; write its values into one, separated by commas.")
        found[key] = values
    return found


def axes_of(given: Any, where: str) -> list[Axis]:
    """The axes of a ``grid:`` mapping or of the ``--grid`` options.

    Raises:
        UserError: where it is none; ``where`` is what a sentence calls its place.
    """
    if given is None:
        return []
    if not isinstance(given, Mapping) or not given:
        raise UserError(f"{where} must be a mapping of options to values, such as `method.rank: [4, 8, 16]` or "
                        f"`seed: 0..4`, not {brief(given)}.")
    for key in given:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", str(key)):
            raise UserError(f"{where} has {brief(key)}, which is no option; options look like method.rank or seed.")
        if str(key).partition(".")[0] in ("config", "method_help") or str(key).endswith(".help"):
            raise UserError(f"{where} cannot go over {key}.")
    axes = [(str(key), values_of(f"the grid's {key}", values)) for key, values in given.items()]
    if math.prod(len(values) for _, values in axes) > MOST:
        raise UserError(f"{where} has {math.prod(len(v) for _, v in axes):,} cells; at most {MOST:,} are run at once.")
    return axes


def seeds_of(given: Any, what: str) -> list[int]:
    """Whole numbers from a list or from text such as ``0..4`` or ``0,3,7``.

    Raises:
        UserError: where there is anything else in it.
    """
    found = [_plain(v) for v in values_of(what, given)] if given and isinstance(given, (str, list)) else []
    if not found or not all(type(v) is int for v in found):
        raise UserError(f"{what} must be a list of whole numbers, not {brief(given)}; a range such as 0..4 is one too.")
    return found


def cells(axes: Sequence[Axis]) -> Iterator[list[tuple[str, Any]]]:
    """Every combination, the last axis fastest; one empty cell where there is no axis."""
    names = [name for name, _ in axes]
    for values in itertools.product(*(values for _, values in axes)):
        yield list(zip(names, values, strict=True))

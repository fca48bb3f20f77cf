"""Kinds of values that a constructor takes: its signature says the range, and it refuses what lies outside.

``def __init__(self, backbone: Backbone, *, rank: Size = 8, momentum: Share = 0.9)`` is all that a class writes. Methods,
scenarios and adapters, and functions under :func:`bounded`, compare what they are given with their own signature before
their first line runs; the command line reads the same signature before any work.
"""

from __future__ import annotations

import functools
import inspect
import math
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from .errors import UserError

__all__ = ["Amount", "Count", "LegacySeed", "Pixels", "Positive", "Range", "Seed", "Share", "Size", "Text", "Whole",
           "bounded", "hints", "kinds", "refusal"]

Made = TypeVar("Made", bound=Callable[..., Any])


@dataclass(frozen=True)
class Range:
    """Numbers from ``least`` to ``most``, both included; ``above`` leaves ``least`` itself out. Never NaN."""

    least: float
    most: float
    above: bool = False

    def refuses(self, value: float) -> str | None:
        """What ``value`` should be, or None where it lies inside."""
        if not math.isfinite(value) if isinstance(value, float) else False:
            return "a finite number"
        if value < self.least or (self.above and value == self.least):
            return f"{'above' if self.above else 'at least'} {_brief(self.least)}"
        return f"at most {_brief(self.most)}" if value > self.most else None


@dataclass(frozen=True)
class NotEmpty:
    """Text of which something is left without its white space."""


_LONG = Range(-(2**63), 2**63 - 1)  # whole numbers that a tensor can hold
_ANY = Range(-math.inf, math.inf)
_MANY = 2**31 - 1

Whole = Annotated[int, Range(0, _MANY)]  # passes, images, steps, where 0 means none (or all)
Count = Annotated[int, Range(1, _MANY)]  # images in a batch, visits, steps: at least one
Size = Annotated[int, Range(1, 2**16)]  # what memory is taken by: a rank, a width, tokens, views, tasks
Pixels = Annotated[int, Range(1, 4096)]  # a side of an image, or of a patch of one
Seed = Annotated[int, Range(0, 2**63 - 1)]
LegacySeed = Annotated[int, Range(0, 2**32 - 1)]  # of numpy's RandomState, by which the field draws its class orders
Amount = Annotated[float, Range(0, 1e12)]  # a learning rate, the weight of a loss
Positive = Annotated[float, Range(0, 1e12, above=True)]  # a temperature, a concentration, whatever is divided by
Share = Annotated[float, Range(0, 1)]  # a probability, a momentum, a part of the whole
Text = Annotated[str, NotEmpty()]  # a name, a pattern


def hints(made: Callable[..., Any]) -> dict[str, Any]:
    """The parameters of a class or function with their types, ranges included.

    A type that cannot be looked up where the parameter stands (one imported for type checkers alone) is left out.
    """
    function = inspect.unwrap(made.__init__ if isinstance(made, type) else made)  # type: ignore[misc]
    found = {}
    for parameter in inspect.signature(function).parameters.values():
        hint = parameter.annotation
        if isinstance(hint, str):
            try:
                hint = eval(hint, getattr(function, "__globals__", {}))  # as typing.get_type_hints does
            except Exception:
                continue
        if hint is not inspect.Parameter.empty:
            found[parameter.name] = hint
    return found


def kinds(hint: Any, mark: Range | NotEmpty | None = None) -> Iterator[tuple[Any, Range | NotEmpty | None]]:
    """What a type is made of, each with its range: ``int`` and ``list`` and ``str`` and None of ``int | list[str] | None``."""
    origin = get_origin(hint)
    if origin is Annotated:
        inner, *marks = get_args(hint)
        yield from kinds(inner, next((m for m in marks if isinstance(m, (Range, NotEmpty))), mark))
    elif origin in (Union, types.UnionType):
        for part in get_args(hint):
            yield from kinds(part, mark)
    elif origin in (list, tuple, set, frozenset, dict):
        yield origin, None
        for part in get_args(hint):
            yield from kinds(part, mark)
    elif origin is not None:  # Literal, Callable: not looked into
        yield origin, None
    else:
        yield (type(None) if hint is None else hint), mark


def refusal(name: str, hint: Any, value: object) -> str | None:
    """The sentence by which ``value`` is refused for the parameter ``name``, or None.

    A number must lie in the range that ``hint`` states; where it states none, a whole number must fit 64 bits and a
    fraction be finite. Elements of lists and mappings are looked at one by one. Values of other types are not judged.
    """
    if isinstance(value, (Mapping, list, tuple)):
        inner = value.items() if isinstance(value, Mapping) else enumerate(value)
        return next((why for k, v in inner if (why := refusal(f"{name}[{k}]", hint, v)) is not None), None)
    parts: dict[Any, Range | NotEmpty | None] = {}
    for kind, mark in kinds(hint):
        parts[kind] = parts.get(kind) or mark
    if isinstance(value, str):
        return f"{name} must not be empty." if isinstance(parts.get(str), NotEmpty) and not value.strip() else None
    if not isinstance(value, (int, float)) or (isinstance(value, bool) and (bool in parts or not {int, float} & set(parts))):
        return None
    if isinstance(value, bool):
        return f"{name} must be a number, not {value}."
    if isinstance(value, float) and int in parts and float not in parts:
        return f"{name} must be a whole number, not {_brief(value)}."
    kind = int if isinstance(value, int) and int in parts else float
    span = parts.get(kind) or (_LONG if kind is int else _ANY)
    wanted = span.refuses(value) if isinstance(span, Range) else None
    return wanted and f"{name} must be {wanted}, not {_brief(value)}."


def _brief(value: float) -> str:
    if isinstance(value, int):
        return str(value) if abs(value) < 10**20 else "a number of more than 20 digits"
    return f"{value:g}"


def bounded(made: Made) -> Made:
    """Have a class or a function compare what it is given with the ranges of its signature.

    A class comes back itself, its ``__init__`` looking first; a function comes back wrapped.

    Raises:
        UserError: when it is called with a value outside its range.
    """
    if isinstance(made, type):
        if "__init__" in vars(made):
            made.__init__ = bounded(vars(made)["__init__"])  # type: ignore[misc]
        return made
    signature, known = inspect.signature(made), functools.lru_cache(maxsize=1)(lambda: hints(made))

    @functools.wraps(made)
    def looking(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # the call below says itself what it lacks
            given = {}
        for name, value in given.items():
            if name in known() and (why := refusal(name, known()[name], value)) is not None:
                raise UserError(why)
        return made(*args, **kwargs)

    return looking  # type: ignore[return-value]

"""Values that the types of a signature accept, read from YAML or from the words of a command line."""

from __future__ import annotations

import collections.abc
import math
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ..errors import UserError
from ..ranges import refusal
from .files import brief, yaml_value

__all__ = ["Reader", "Word", "finite", "made_of", "words"]

_LISTS = (list, collections.abc.Sequence, collections.abc.Iterable, set, frozenset)
_NAMES = {type(None): "null", list: "a list", tuple: "a list", dict: "a mapping"}


class Word(str):
    """A value as it was typed on a command line: text that may stand for a number, a list or null."""


class _Wrong(Exception):
    """The value is not of this type."""


@dataclass(frozen=True)
class Reader:
    """Reads values by their types.

    Attributes:
        part: what becomes of a value whose type is a scenario, method or backbone: (name, class, value) -> value.
        builds: whether values of types that are none of ours become objects, or stay the plain data that they are read from.
    """

    part: Callable[[str, type, Any], Any]
    builds: bool = False

    def read(self, name: str, hint: Any, value: Any) -> Any:
        """``value`` as the type ``hint`` has it, inside its range; ``name`` is the option, as a sentence says it.

        Raises:
            UserError: where the type does not take the value, or the value lies outside the type's range.
        """
        if isinstance(value, Word):
            tried = [_loaded(name, value, _has(hint, str)), value]
        else:  # in a file, a number may stand in quotes
            tried = [value, _loaded(name, value, False)] if isinstance(value, str) and not _has(hint, str) else [value]
        for candidate in tried:
            try:
                found = self._read(name, hint, candidate)
            except _Wrong:
                continue
            if (why := refusal(name, hint, found) or finite(name, found)) is not None:
                raise UserError(why)
            return found
        raise UserError(f"{name} must be {words(hint)}, not {brief(_unworded(value))}.")

    def _read(self, name: str, hint: Any, value: Any) -> Any:
        origin, inner = get_origin(hint), get_args(hint)
        if hint in (Any, object):
            return _plain(name, value)
        if origin is Annotated:
            return self._read(name, inner[0], value)
        if origin in (Union, types.UnionType):
            return self._first(name, inner, value)
        if origin is Literal:
            return _one([a for a in inner if type(a) is type(_unworded(value)) and a == value])
        if hint in (None, type(None)):
            return _one([None] if value is None else [])
        if hint in (bool, int, float, str):
            return _scalar(hint, value)
        if (origin or hint) in (*_LISTS, tuple):
            if not isinstance(value, (list, tuple)):
                raise _Wrong
            kinds = _kinds(inner, len(value), (origin or hint) is tuple)
            found = [self._read(f"{name}[{k}]", h, v) for k, (h, v) in enumerate(zip(kinds, value, strict=True))]
            return tuple(found) if (origin or hint) is tuple else found
        if (origin or hint) in (dict, collections.abc.Mapping):
            if not isinstance(value, Mapping):
                raise _Wrong
            each = inner[1] if len(inner) == 2 else Any
            return {str(k): self._read(f"{name}.{k}", each, v) for k, v in value.items()}
        base = made_of(hint)
        return self._foreign(hint, value) if base is None else self.part(name, base, value)

    def _first(self, name: str, choices: tuple[Any, ...], value: Any) -> Any:
        for choice in sorted(choices, key=lambda h: h is not type(None)):
            try:
                return self._read(name, choice, value)
            except _Wrong:
                continue
        raise _Wrong

    def _foreign(self, hint: Any, value: Any) -> Any:
        """A type that is none of ours, by jsonargparse."""
        from jsonargparse import ArgumentParser

        parser = ArgumentParser(exit_on_error=False)
        try:
            parser.add_argument("--value", type=hint)
            found = parser.parse_object({"value": _unworded(value)})
            return parser.instantiate(found).value if self.builds else _unworded(value)
        except Exception:
            raise _Wrong from None


def _loaded(name: str, text: str, is_text: bool) -> Any:
    """What text stands for: a number, a list, null; the text itself where it stands for nothing else."""
    try:
        found = yaml_value(text, f"the value of {name}")
    except UserError:
        if text[:1] in ("[", "{", "&", "*") and not is_text:
            raise
        return str(text)
    return str(text) if isinstance(found, str) else found


def _has(hint: Any, kind: type) -> bool:
    """Whether ``hint`` itself, not an element of it, may be ``kind``."""
    origin = get_origin(hint)
    if origin is Annotated:
        return _has(get_args(hint)[0], kind)
    if origin in (Union, types.UnionType):
        return any(_has(h, kind) for h in get_args(hint))
    return hint is kind or (origin is Literal and any(isinstance(a, kind) for a in get_args(hint)))


def made_of(hint: Any) -> type | None:
    """The class whose instances ``hint`` takes, or whose makers: ``Scenario``, ``Callable[[Backbone], Method]``."""
    if get_origin(hint) is collections.abc.Callable:
        hint = get_args(hint)[-1]
    ours = ("Scenario", "Method", "Backbone")
    return hint if isinstance(hint, type) and any(b.__module__.partition(".")[0] == "cl_bench" and b.__name__ in ours
                                                  for b in hint.__mro__) else None


def _one(choices: list[Any]) -> Any:
    if not choices:
        raise _Wrong
    return choices[0]


def _unworded(value: Any) -> Any:
    return str(value) if isinstance(value, Word) else value


def _scalar(kind: type, value: Any) -> Any:
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise _Wrong from None
    if kind is str and isinstance(value, str):
        return str(value)
    if type(value) is not kind:
        raise _Wrong
    return value


def _kinds(inner: tuple[Any, ...], count: int, fixed: bool) -> Iterable[Any]:
    if not inner:
        return [Any] * count
    if not fixed or (len(inner) == 2 and inner[1] is Ellipsis):
        return [inner[0]] * count
    if len(inner) != count:
        raise _Wrong
    return inner


def _plain(name: str, value: Any) -> Any:
    """Any value at all, its typed words read."""
    if isinstance(value, Word):
        return _loaded(name, value, False)
    if isinstance(value, Mapping):
        return {k: _plain(name, v) for k, v in value.items()}
    return [_plain(name, v) for v in value] if isinstance(value, (list, tuple)) else value


def finite(name: str, value: Any) -> str | None:
    """Why a record could not hold ``value``, or None: NaN and infinity are no JSON, half a character is no UTF-8."""
    if isinstance(value, Mapping):
        return next((why for k, v in value.items() if (why := finite(f"{name}.{k}", v))), None)
    if isinstance(value, (list, tuple)):
        return next((why for k, v in enumerate(value) if (why := finite(f"{name}[{k}]", v))), None)
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name} must be a finite number, not {value}."
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= c <= "\udfff" for c in value)):
        return f"{name} holds a character that no text file can: {brief(ascii(value))}."
    return None


def words(hint: Any) -> str:
    """A type as a sentence says it: ``one of 'a', 'b'``, ``int or null``."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return words(inner[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(words(h) for h in inner))
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if origin in (*_LISTS, tuple) or hint in (*_LISTS, tuple):
        each = {words(h) for h in inner if h is not Ellipsis}
        return f"a list of {each.pop()}" if len(each) == 1 else "a list"
    if origin in (dict, collections.abc.Mapping):
        return "a mapping"
    return _NAMES.get(hint) or str(getattr(made_of(hint) or hint, "__name__", hint))

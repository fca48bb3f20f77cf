"""What a part of a run is called and compared by: plain values, without the places where files lie.

Two users with the same files in other folders have the same protocol; a tuple and the list that a record made of it are
one value. Labels, folder names and fingerprints are made from :func:`normal` and :func:`arguments` alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from numbers import Integral, Real
from pathlib import PurePath
from typing import Any

__all__ = ["arguments", "called_place", "is_place", "normal", "protocol_id", "told_arguments"]

_NAMED = re.compile(r"(?:.*_)?(?:(?:root|folder|dir|path)s?|directory|directories|file)$")
_TYPED = re.compile(r"\b(?:Path|PurePath|PathLike|Path_\w+)\b")
_WRITTEN = re.compile(r"(?:/|~[\w.-]*/|\.{1,2}/|[A-Za-z]:[\\/]|local-dir:|file:)")


def is_place(value: Any) -> bool:
    """Whether a value says where something lies: a path object, or text written as an absolute or a dotted path."""
    return isinstance(value, PurePath) or (isinstance(value, str) and _WRITTEN.match(value) is not None)


def called_place(name: Any) -> bool:
    """Whether an option of this name says where something lies."""
    return _NAMED.fullmatch(str(name)) is not None


def protocol_id(fields: Mapping[str, Any]) -> str:
    """The id of a fingerprint, 12 hex digits of a hash of its normalised fields."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


def arguments(target: Callable[..., Any], given: Mapping[str, Any], places: Collection[str] = ()) -> dict[str, Any]:
    """The arguments of ``target`` that say what it is, normalised, in the order of its signature.

    Left out are places: parameters that ``places`` names (``Scenario.places``), that are called ``root``, ``folder``,
    ``dir``, ``path`` or ``file`` with or without something before it (``clean_root``, ``checkpoint_path``; keys inside
    a mapping too), that are typed as paths, and values that are paths.
    """
    known = inspect.signature(target).parameters
    order = [*(n for n in known if n in given), *sorted(n for n in given if n not in known)]
    typed = {n for n, p in known.items() if _TYPED.search(str(p.annotation))}
    return _without_places({n: given[n] for n in order if n not in places and n not in typed})


def told_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` without places, as :func:`arguments` leaves them out, where the signature is not at hand."""
    return _without_places(given)


def normal(value: Any) -> Any:
    """``value`` in the one form in which it is told, hashed or compared: JSON's types; tuples, sets and arrays are lists,
    keys are sorted, places are left out, numbers that are not finite are text; anything else is its ``repr`` where
    that says more than an address in memory, or the name of its class or function.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        by_name = {str(k): v for k, v in value.items()}
        return {k: normal(by_name[k]) for k in sorted(by_name) if not is_place(by_name[k])}
    if isinstance(value, (list, tuple)):
        return [normal(v) for v in value if not is_place(v)]
    if isinstance(value, (set, frozenset)):
        return sorted((normal(v) for v in value if not is_place(v)), key=str)
    if hasattr(value, "tolist"):  # an array, or a number in one; bool_ is none of the numbers above
        return normal(value.tolist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        held = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {"kind": type(value).__qualname__, **normal(held)}
    if inspect.isroutine(value) or isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    text = repr(value)
    return type(value).__qualname__ if " at 0x" in text else text


def _without_places(given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` in its own order, normalised, without what is called like a place."""
    inside = {k: _without_places(v) if isinstance(v, Mapping) else v for k, v in given.items()}
    return {k: normal(v) for k, v in inside.items() if not is_place(v) and not _NAMED.fullmatch(str(k))}

"""Sentences about classes from a file of the user's: what methods with outside knowledge read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from cl_bench import UserError
from cl_bench.data.files import existing_file

Phrases = Mapping[str, Mapping[str, Sequence[str]]]  # class -> class it is told from, or "" -> phrases

HOW = 'a JSON object of classes by name, each a list of phrases or {"other class": [phrases]}'


def read_phrases(path: str) -> Phrases:
    """Phrases by class and by the class that they tell it from; those of a plain list stand under "".

    Raises:
        UserError: no such file, or it holds something else.
    """
    try:
        held = json.loads(existing_file(path, f"it should hold {HOW}.").read_text(encoding="utf-8"))
        found = {name: value if isinstance(value, dict) else {"": value} for name, value in held.items()}
    except (ValueError, AttributeError) as fault:
        raise UserError(f'"{path}" is no file of phrases: it should hold {HOW}.') from fault
    for name, by in found.items():
        for told in by.values():
            if not (isinstance(told, list) and told and all(isinstance(t, str) and t.strip() for t in told)):
                raise UserError(f'"{path}" has no phrases for "{name}": it should hold {HOW}.')
    return found


def phrases_of(phrases: Phrases, names: Sequence[str], path: str) -> list[list[str]]:
    """All phrases of each class.

    Raises:
        UserError: a class has none.
    """
    if missing := [n for n in names if n not in phrases]:
        raise UserError(f'"{path}" has no phrases for "{missing[0]}": add them under that name.')
    return [[p for told in phrases[n].values() for p in told] for n in names]

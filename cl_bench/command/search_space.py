"""The options that a search tries, from words: ``method.rank=4,8,16``, ``method.epochs=1..5``, ``method.lr=1e-4..1e-1:log``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .files import brief, yaml_value

__all__ = ["Axis", "read_space"]

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(:log)?\Z")
FORMS = "give values (4,8,16) or a range (1..5, 0.1..0.9, 1e-4..1e-1:log)"


@dataclass(frozen=True)
class Axis:
    """One option: ``values`` to choose among, or a range from ``low`` to ``high``, whole or not, even in its logarithm."""

    name: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False

    def ask(self, trial: Any) -> Any:
        """The value that an Optuna trial takes here."""
        if self.values:
            return trial.suggest_categorical(self.name, list(self.values))
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def ends(self) -> list[Any]:
        """Values that must all be allowed for every value between them to be."""
        return list(self.values) or [int(v) if self.whole else v for v in (self.low, self.high)]

    def to_json(self) -> dict[str, Any]:
        """As a record keeps it."""
        if self.values:
            return {"values": list(self.values)}
        low, high = self.ends()
        return {"from": low, "to": high, "log": self.log}


def read_space(words: Sequence[str]) -> list[Axis]:
    """The axes of ``--search`` options.

    Raises:
        UserError: for one that is none, is no option of the method, or stands twice.
    """
    axes = [_axis(word) for word in words]
    names = [axis.name for axis in axes]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--search {twice[0]} stands twice.")
    if not axes:
        raise UserError(f"say what to search: --search method.lr=1e-4..1e-1:log; {FORMS}.")
    return axes


def _axis(word: str) -> Axis:
    name, equals, text = word.partition("=")
    if not equals or not text.strip():
        raise UserError(f"--search {brief(word)} must name an option and its values; {FORMS}.")
    if not name.startswith("method.") or not all(name.split(".")):
        raise UserError(f"--search {brief(name)}: only options of the method are searched, such as method.lr.")
    if match := _RANGE.match(text.strip()):
        low, high = float(match[1]), float(match[2])
        log, whole = match[3] is not None, all(re.fullmatch(r"[-+]?\d+", match[k]) for k in (1, 2))
        if not (math.isfinite(low) and math.isfinite(high) and low < high) or (log and low <= 0):
            raise UserError(f"--search {word}: a range goes from the smaller to the larger number, with :log from above 0.")
        return Axis(name, low=low, high=high, whole=whole, log=log)
    values = tuple(yaml_value(part, f"--search {name}") for part in text.split(","))
    if any(not isinstance(value, (str, int, float, bool)) for value in values) or len(set(map(repr, values))) != len(values):
        raise UserError(f"--search {brief(word)} must hold plain values, each once; {FORMS}.")
    return Axis(name, values)

"""What was computed for runs that have not changed: a page that follows its folder asks for it again and again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from ..records.results import Run

__all__ = ["kept"]

MOST = 100_000
T = TypeVar("T")
_made: OrderedDict[Hashable, tuple[tuple[Run, ...], Any]] = OrderedDict()


def kept(runs: Sequence[Run], what: Hashable, make: Callable[[], T]) -> T:
    """``make()``, once for these very runs (the objects: a record that was read again is another one) and ``what``."""
    key = (what, tuple(map(id, runs)))
    if key in _made:
        _made.move_to_end(key)
        return _made[key][1]  # type: ignore[no-any-return]
    value = make()
    _made[key] = tuple(runs), value  # holding the runs, so that no other object takes their identity
    while len(_made) > MOST:
        _made.popitem(last=False)
    return value

"""Whether a run learned anything at all: a model that answers by chance has nothing that it could forget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .matrix import AccuracyMatrix

__all__ = ["learned_anything"]

SIGMAS = 1.645  # one-sided 5 % of the normal approximation


def learned_anything(matrix: AccuracyMatrix, record: Mapping[str, Any]) -> bool:
    """Whether the answers right after learning (the diagonal) are more often right than guessing would make them.

    Guessing is uniform among the classes that the scenario lets a method answer among; a record that does not say which
    is only asked for one right answer. True where nothing of the diagonal was measured: nothing speaks against it.
    """
    cells = [(j, d) for j, d in enumerate(matrix.learned or ()) if d is not None and matrix.total[d, j]]
    if not cells:
        return True
    right = sum(int(matrix.correct[d, j]) for j, d in cells)
    experiences = {str(e.get("name")): set(e.get("classes") or ()) for e in record.get("experiences") or ()}
    tests = {str(t.get("name")): set(t.get("classes") or ()) for t in record.get("test_sets") or ()}
    answers = ((record.get("fingerprint") or {}).get("fields") or {}).get("answers")

    def chance(column: int, row: int) -> float:
        """Share of right answers that guessing gives on a column at a row; 0 where the record does not say."""
        if not answers:
            return 0.0
        own = tests.get(matrix.columns[column], set())
        among = own if answers == "task" else set().union(*experiences.values()) if answers == "all" else set().union(
            *(experiences.get(name, set()) for name in matrix.rows[:row + 1]))
        return 1 / len(among) if len(among) > 1 else 0.0

    chances = [(int(matrix.total[d, j]), chance(j, d)) for j, d in cells]
    expected = sum(n * p for n, p in chances)
    return right > expected + SIGMAS * math.sqrt(sum(n * p * (1 - p) for n, p in chances))

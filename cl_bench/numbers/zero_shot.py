"""What learning does to answers that need none: accuracy on classes not learned yet, against the row before any learning.

Zheng et al., "Preventing Zero-Shot Transfer Degradation in Continual Learning of Vision-Language Models", ICCV 2023, has
Transfer in percent; the difference to the zero-shot row is what a method took from it, or added.
"""

from __future__ import annotations

import math

import numpy as np

from .matrix import AccuracyMatrix
from .metrics import Metric

__all__ = ["METRICS", "zero_shot", "zero_shot_change"]


def zero_shot(matrix: AccuracyMatrix) -> float:
    """Mean accuracy over all test sets in the row before any learning; NaN without that row."""
    return float(np.mean(matrix.percent[0])) if matrix.before and len(matrix.rows) else math.nan


def zero_shot_change(matrix: AccuracyMatrix) -> float:
    """Points by which accuracy on test sets not learned yet differs from the row before any learning.

    Mean over test sets of the mean over the rows of learning before their own (of all rows for a set that nothing teaches);
    the test set that is learned first has no such row.
    """
    if not matrix.before or len(matrix.rows) < 2 or matrix.learned is None:
        return math.nan
    found = [
        float(np.mean(matrix.percent[1:stop, j]) - matrix.percent[0, j])
        for j, stop in enumerate(d if d is not None else len(matrix.rows) for d in matrix.learned)
        if stop > 1
    ]
    return float(np.mean(found)) if found else math.nan


METRICS = (
    Metric("zero_shot_accuracy", "zero-shot", "%", True, lambda m, s, r: zero_shot(m), ("learning",), "transfer",
           "mean accuracy over all test sets before any learning"),
    Metric("zero_shot_change", "zero-shot change", "points", True, lambda m, s, r: zero_shot_change(m), ("learning",),
           "transfer", "accuracy on test sets not learned yet minus the row before any learning"),
)  # fmt: skip

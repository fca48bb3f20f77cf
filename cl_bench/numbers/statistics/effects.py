"""How much of the spread of a sweep's results each parameter explains by itself.

First-order shares of variance (Sobol 1993; Hutter et al., "An efficient approach for assessing hyperparameter importance",
ICML 2014, for fANOVA): the variance of the means at each level of a parameter, over the variance of all results. On a full grid
they are exact, and what they leave of 1 are interactions; where settings are missing they are estimates.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["main_effects"]


def main_effects(settings: Sequence[Sequence[Hashable]], values: ArrayLike) -> list[float]:
    """Per parameter the share (0 to 1) of the variance of ``values`` that its own levels explain. ``settings[i]``: the level of
    every parameter in setting i; NaN everywhere for fewer than two settings or values that are all equal."""
    y = np.asarray(values, dtype=float)
    known = np.isfinite(y)
    total = float(y[known].var()) if known.sum() > 1 else 0.0
    count = len(settings[0]) if settings else 0
    if total <= 0:
        return [float("nan")] * count
    out = []
    for k in range(count):
        levels: dict[Hashable, list[float]] = {}
        for setting, value, there in zip(settings, y, known, strict=True):
            if there:
                levels.setdefault(setting[k], []).append(float(value))
        weights = np.array([len(v) for v in levels.values()], dtype=float)
        means = np.array([np.mean(v) for v in levels.values()])
        middle = float((weights * means).sum() / weights.sum())
        out.append(float((weights * (means - middle) ** 2).sum() / weights.sum() / total))
    return out

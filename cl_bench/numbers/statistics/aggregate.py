"""Methods over several scenarios from a handful of runs each: interquartile mean, performance profile, probability of
improvement, with stratified bootstrap intervals.

Source: Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice", NeurIPS 2021 (rliable).
Scores share one scale here (percent), so they need no normalising.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Aggregate", "aggregate", "interquartile_mean", "performance_profile", "probability_of_improvement"]

Array = NDArray[np.float64]
RESAMPLES = 2000


def interquartile_mean(scores: ArrayLike) -> float:
    """Mean of the middle half: a quarter of the values (rounded down) is left out at each end."""
    x = np.sort(np.asarray(scores, dtype=float), axis=None)
    cut = x.size // 4
    return float(x[cut:x.size - cut].mean()) if x.size else float("nan")


def performance_profile(scores: Sequence[ArrayLike], thresholds: ArrayLike) -> Array:
    """Share of runs with a score above each threshold; every scenario (one array of runs each) weighs the same."""
    tau = np.asarray(thresholds, dtype=float)
    return np.asarray(np.mean([(np.asarray(x, dtype=float)[:, None] > tau).mean(axis=0) for x in scores], axis=0))


def probability_of_improvement(a: Sequence[ArrayLike], b: Sequence[ArrayLike]) -> float:
    """Chance that a run of ``a`` scores higher than one of ``b`` on a scenario drawn at random; ties count half. Per scenario
    it is the Mann-Whitney statistic over the product of the two numbers of runs."""
    return float(np.mean([_above(np.asarray(x, dtype=float), np.asarray(y, dtype=float)) for x, y in zip(a, b, strict=True)]))


def _above(x: Array, y: Array) -> float:
    d = x[:, None] - y
    return float(((d > 0) + 0.5 * (d == 0)).mean())


@dataclass(frozen=True)
class Aggregate:
    """Per method (k): ``iqm`` with ``low`` and ``high`` (95 %, bootstrap over the runs of each scenario), ``profile`` (k, T)
    over ``thresholds`` (T,), and ``better`` (k, k): the probability that the row improves on the column."""

    iqm: Array
    low: Array
    high: Array
    thresholds: Array
    profile: Array
    better: Array
    runs: tuple[int, int]


def aggregate(scores: Sequence[Sequence[ArrayLike]], points: int = 51, seed: int = 0) -> Aggregate:
    """``scores[m][s]``: the runs of method m on scenario s, higher is better, one scale. Ends of intervals are NaN where no
    scenario has two runs, ``runs`` are the fewest and the most runs of a method on a scenario."""
    known = [[np.asarray(x, dtype=float) for x in of] for of in scores]
    everything = np.concatenate([x for of in known for x in of])
    tau = np.linspace(np.floor(everything.min()), np.ceil(everything.max()), points)
    generator = np.random.default_rng(seed)
    low, high = [], []
    for of in known:
        if max(x.size for x in of) < 2:
            low.append(np.nan)
            high.append(np.nan)
            continue
        drawn = np.concatenate([x[generator.integers(0, x.size, (RESAMPLES, x.size))] for x in of], axis=1)
        drawn.sort(axis=1)
        cut = drawn.shape[1] // 4
        ends = np.percentile(drawn[:, cut:drawn.shape[1] - cut].mean(axis=1), [2.5, 97.5])
        low.append(ends[0])
        high.append(ends[1])
    sizes = [x.size for of in known for x in of]
    return Aggregate(np.array([interquartile_mean(np.concatenate(of)) for of in known]), np.array(low), np.array(high), tau,
                     np.stack([performance_profile(of, tau) for of in known]),
                     np.array([[probability_of_improvement(a, b) for b in known] for a in known]), (min(sizes), max(sizes)))

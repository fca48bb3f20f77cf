"""Paired comparison of methods: sign-flip permutation, Wilcoxon signed-rank, Holm's correction, Cliff's delta.

Sources: Fisher 1935 and Pitman 1937 (permutation), Wilcoxon 1945, Holm 1979, Cliff 1993; magnitudes of delta as in
Romano et al. 2006. Sign flips of up to 16 pairs are enumerated, more are sampled from a seeded generator; the
signed-rank null is computed exactly for every n, ties included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .intervals import Interval, t_interval

__all__ = ["PairedTest", "cliffs_delta", "cliffs_magnitude", "compare_pair", "holm", "indistinguishable_from_best",
           "pair", "sign_flip_test", "smallest_p", "wilcoxon_test"]

EXACT_UP_TO = 16
RESAMPLES = 20_000


_written = lru_cache(maxsize=65536)(repr)  # the keys of a table's runs, which stand in each of its hundreds of tests


def pair(a: Mapping[Any, float], b: Mapping[Any, float]) -> tuple[np.ndarray, np.ndarray]:
    """Values of two methods on the keys, (seed, order), that both have and where both are finite, in key order."""
    keys = [k for k in sorted(a, key=_written) if k in b and math.isfinite(a[k]) and math.isfinite(b[k])]
    return np.array([a[k] for k in keys], dtype=float), np.array([b[k] for k in keys], dtype=float)


@lru_cache(maxsize=4)
def _signs(n: int) -> np.ndarray:
    """All sign vectors whose first sign is plus, (2^(n-1), n): the other half mirrors them."""
    bits = (np.arange(2 ** (n - 1))[:, None] >> np.arange(n - 1)[None, :]) & 1
    return np.concatenate([np.ones((len(bits), 1)), 1.0 - 2.0 * bits], axis=1)


@lru_cache(maxsize=4)
def _random_signs(n: int, resamples: int, seed: int) -> np.ndarray:
    return 1.0 - 2.0 * np.random.default_rng(seed).integers(0, 2, size=(resamples, n))


def smallest_p(n: int, resamples: int = RESAMPLES) -> float:
    """The smallest two-sided p-value that n (non-zero) paired differences can give; 1 for none."""
    if n <= 0:
        return 1.0
    return 2.0 / 2 ** n if n <= EXACT_UP_TO else 1.0 / (resamples + 1)


def _flip(values: np.ndarray, resamples: int, seed: int) -> float:
    return _flipped(values.tobytes(), resamples, seed)


@lru_cache(maxsize=8192)  # a page that follows its runs asks for the same pairs again and again
def _flipped(buffer: bytes, resamples: int, seed: int) -> float:
    """Two-sided p of |sum| under random signs; the values hold no zeros."""
    values = np.frombuffer(buffer)
    n = values.size
    if n == 0:
        return 1.0
    observed = abs(values.sum())
    slack = 1e-9 * np.abs(values).sum()
    if n <= EXACT_UP_TO:
        return float((np.abs(_signs(n) @ values) >= observed - slack).mean())
    signs = _random_signs(n, resamples, seed)
    return float((1 + (np.abs(signs @ values) >= observed - slack).sum()) / (resamples + 1))


def sign_flip_test(differences: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p that paired differences are symmetric about 0 (statistic: their mean). Exact for n <= 16, else
    Monte-Carlo with a seeded generator and the +1 of Davison & Hinkley. A zero difference moves nothing; all zero or
    no pair gives 1."""
    d = np.asarray(differences, dtype=float)
    d = d[np.isfinite(d)]
    return _flip(d[d != 0], resamples, seed)


def wilcoxon_test(differences: ArrayLike) -> float:
    """Two-sided p of Wilcoxon's signed-rank test, zeros dropped: exact for every n, also with ties (average ranks)."""
    d = np.asarray(differences, dtype=float)
    d = d[np.isfinite(d) & (d != 0)]
    if d.size == 0:
        return 1.0
    size = np.round(np.abs(d), 9)  # differences of percentages tie in truth, not in the last bit
    ranks = (size[:, None] > size).sum(axis=1) + ((size[:, None] == size).sum(axis=1) + 1) / 2
    doubled = np.rint(2 * ranks).astype(np.int64)  # average ranks are halves: doubled, they are whole
    # Null distribution of the sum of the ranks with plus sign: each rank is in or out with probability one half.
    null = np.zeros(int(doubled.sum()) + 1)
    null[0] = 1.0
    for rank in doubled:
        null[rank:] = 0.5 * (null[rank:] + null[:-rank])
        null[:rank] *= 0.5
    plus = int(doubled[d > 0].sum())
    return float(min(1.0, 2 * min(null[:plus + 1].sum(), null[plus:].sum())))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given; NaN stays NaN and is not counted as a test."""
    p = np.asarray(p_values, dtype=float)
    out = np.full(p.size, np.nan)
    order = [int(i) for i in np.argsort(p, kind="stable") if np.isfinite(p[i])]
    running = 0.0
    for position, index in enumerate(order):
        running = max(running, (len(order) - position) * p[index])
        out[index] = min(1.0, running)
    return out.tolist()


def cliffs_delta(a: ArrayLike, b: ArrayLike) -> float:
    """P(a > b) - P(a < b) over all pairs, in [-1, 1]; NaN where one side is empty."""
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.size == 0 or y.size == 0:
        return math.nan
    return float(np.sign(x[:, None] - y[None, :]).mean())


def cliffs_magnitude(delta: float) -> str:
    """negligible (< 0.147), small (< 0.33), medium (< 0.474) or large."""
    size = abs(delta)
    return "negligible" if size < 0.147 else "small" if size < 0.33 else "medium" if size < 0.474 else "large"


@dataclass(frozen=True)
class PairedTest:
    """Method a against method b on n common (seed, order) pairs; differences are a - b, in the metric's unit."""

    n: int
    difference: Interval
    p_sign_flip: float
    p_wilcoxon: float
    smallest_p: float
    delta: float

    @property
    def can_show(self) -> bool:
        """Whether n pairs could give p <= 0.05 at all."""
        return self.smallest_p <= 0.05


def compare_pair(a: Mapping[Any, float], b: Mapping[Any, float], seed: int = 0) -> PairedTest:
    """All paired statistics of two methods given as ``{(seed, order): value}``. Without a common pair the p-values
    are NaN: nothing was tested."""
    x, y = pair(a, b)
    return _compared(x.tobytes(), y.tobytes(), seed)


@lru_cache(maxsize=8192)
def _compared(a: bytes, b: bytes, seed: int) -> PairedTest:
    x, y = np.frombuffer(a), np.frombuffer(b)
    d = x - y
    if d.size == 0:
        return PairedTest(0, t_interval(d), math.nan, math.nan, 1.0, math.nan)
    return PairedTest(int(d.size), t_interval(d), sign_flip_test(d, seed=seed), wilcoxon_test(d), smallest_p(d.size),
                      cliffs_delta(x, y))


def indistinguishable_from_best(values: Mapping[str, Mapping[Any, float]], higher_is_better: bool = True,
                                alpha: float = 0.05) -> tuple[str | None, dict[str, float]]:
    """The method with the best mean, and for each other method the Holm-adjusted sign-flip p against it.

    A method with p > alpha, or NaN (no common pair), is not distinguishable from the best by these runs. Returns
    (None, {}) where nothing was measured."""
    finite = {m: [x for x in runs.values() if math.isfinite(x)] for m, runs in values.items()}
    means = {m: float(np.mean(x)) for m, x in finite.items() if x}
    if not means:
        return None, {}
    best = (max if higher_is_better else min)(means, key=lambda m: means[m])
    others = [m for m in means if m != best]
    adjusted = holm([compare_pair(values[m], values[best]).p_sign_flip for m in others])
    return best, dict(zip(others, adjusted, strict=True))

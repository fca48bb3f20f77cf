"""Confidence intervals for a mean: Student's t, and the bias-corrected and accelerated bootstrap.

Sources: Student 1908; Efron 1987 (BCa). Both take the values of n independent runs; what a mean over three seeds is
worth shows in the width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["BOOTSTRAP_FROM", "Interval", "bca_interval", "seeds_to_decide", "t_bands", "t_interval", "t_quantile"]


BOOTSTRAP_FROM = 8  # with fewer runs the bootstrap covers less than it says


@dataclass(frozen=True)
class Interval:
    """A mean with its spread. ``low``/``high`` are NaN where n < 2: one run says nothing of its spread."""

    mean: float
    low: float
    high: float
    std: float
    n: int

    @property
    def half_width(self) -> float:
        """Half of the interval's length (for a symmetric one: the number after the plus-minus sign)."""
        return (self.high - self.low) / 2


@lru_cache(maxsize=4096)
def _quantile(freedom: int, p: float) -> float:
    """Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, p))


def t_quantile(freedom: int, confidence: float = 0.95) -> float:
    """Student's t that ``confidence`` of the distribution lies within, on both sides."""
    return _quantile(freedom, 0.5 + confidence / 2)


def _finite(values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=float).ravel()
    return array[np.isfinite(array)]


def _spread(x: np.ndarray) -> tuple[float, float]:
    n = x.size
    if n == 0:
        return math.nan, math.nan
    mean = np.add.reduce(x) / n  # as numpy's mean and std, to the bit, at a third of their price: tables ask ten thousand times
    apart = x - mean
    return float(mean), math.sqrt(np.add.reduce(apart * apart) / (n - 1)) if n > 1 else math.nan


def t_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean with Student's t interval; values that are not finite are left out (and not counted in n)."""
    x = _finite(values)
    mean, std = _spread(x)
    if x.size < 2:
        return Interval(mean, math.nan, math.nan, std, int(x.size))
    half = _quantile(int(x.size) - 1, 0.5 + confidence / 2) * std / math.sqrt(x.size)
    return Interval(mean, mean - half, mean + half, std, int(x.size))


def t_bands(values: ArrayLike, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and ends of the t-interval down the first axis: values (n, ...) give three arrays (...). NaN is left out
    cell by cell; ends are NaN where fewer than two values are left."""
    x = np.asarray(values, dtype=float)
    known = np.isfinite(x)
    n = known.sum(axis=0)
    mean = np.where(n > 0, np.where(known, x, 0).sum(axis=0) / np.maximum(n, 1), np.nan)
    square = (np.where(known, x - mean, 0) ** 2).sum(axis=0)
    t = np.vectorize(lambda m: _quantile(int(m) - 1, 0.5 + confidence / 2) if m > 1 else np.nan, otypes=[float])(n)
    half = t * np.sqrt(square / np.maximum(n - 1, 1) / np.maximum(n, 1))
    return mean, mean - half, mean + half


def seeds_to_decide(differences: ArrayLike, power: float = 0.8, most: int = 1000) -> int | None:
    """How many pairs a two-sided t-test at 5 % needs to see the mean of ``differences`` with ``power``, if their mean and
    spread are the true ones; never fewer than 6, with which a sign-flip test can first tell. None for fewer than two
    pairs or a mean of 0; ``most`` + 1 where even that many are too few."""
    d = _finite(differences)
    mean, std = _spread(d)
    if d.size < 2 or mean == 0:
        return None
    for n in range(6, most + 1):
        if abs(mean) >= (_quantile(n - 1, 0.975) + _quantile(n - 1, power)) * std / math.sqrt(n):
            return n
    return most + 1


@lru_cache(maxsize=4)
def _resamples(n: int, resamples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, n, size=(resamples, n))


def bca_interval(values: ArrayLike, confidence: float = 0.95, resamples: int = 9999, seed: int = 0) -> Interval:
    """Mean with the BCa bootstrap interval, from a seeded generator.

    Equal values give an interval of length zero. With fewer than :data:`BOOTSTRAP_FROM` runs the bootstrap covers less
    than it says: use :func:`t_interval` there.
    """
    return _bca(_finite(values).tobytes(), confidence, resamples, seed)


@lru_cache(maxsize=8192)  # a page that follows its runs asks for the same pairs again and again
def _bca(buffer: bytes, confidence: float, resamples: int, seed: int) -> Interval:
    x = np.frombuffer(buffer)
    mean, std = _spread(x)
    n = int(x.size)
    if n < 2:
        return Interval(mean, math.nan, math.nan, std, n)
    if np.ptp(x) <= 1e-12 * np.abs(x).max():  # differences that are equal but for the last bit have no shape to correct for
        return Interval(mean, mean, mean, 0.0, n)
    means = x[_resamples(n, resamples, seed)].mean(axis=1)
    normal = NormalDist()
    # Ties with the observed mean count half: with few runs many resamples are the sample itself.
    below = ((means < mean).sum() + 0.5 * (means == mean).sum()) / resamples
    bias = normal.inv_cdf(float(np.clip(below, 1 / (2 * resamples), 1 - 1 / (2 * resamples))))
    jackknife = (x.sum() - x) / (n - 1)
    u = jackknife.mean() - jackknife
    acceleration = float((u ** 3).sum() / (6 * (u ** 2).sum() ** 1.5))

    def corrected(p: float) -> float:
        z = bias + normal.inv_cdf(p)
        return normal.cdf(bias + z / (1 - acceleration * z))

    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [corrected(tail), corrected(1 - tail)])
    return Interval(mean, float(low), float(high), std, n)

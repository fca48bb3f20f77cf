"""Two methods told apart by their answers image by image: what holds for these runs, and what for new ones.

The difference of two methods in a run is a sum over test images, and the same images are answered in every run. Two
questions follow, and both are answered here. *Given these runs*: would other images of the same kind show the same
difference between these trained models? Images are resampled within their test set, in all runs at once. *Over new
runs*: would other seeds show it too? To the resampled images comes the spread of the runs, as Student's t with R - 1
degrees of freedom has it: three runs cannot be resampled (a plain hierarchical bootstrap then covers far less than it
says; ``results/compare/image_inference.md``). What images and runs share is counted in both parts, so that few runs give
intervals that are rather too wide. The p-values come from the same two levels with every image's sign flipped at
random: a permutation over images, and mixed with Student's t for the runs.

Sources: Davison & Hinkley 1997, ch. 3.8 (hierarchical bootstrap); Owen 2007 (two-way resampling is conservative);
Fisher 1935, Pitman 1937 (sign flips).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ImageTest", "image_test"]

DRAWS = 10_000
RESAMPLED_UP_TO = 20_000  # images of one stratum; the mean of more is normal to the third digit
SMOOTH_FROM = 200  # images that differ, of one weight: of their sum three cumulants say as much as 10,000 draws
SHARED_UP_TO = 128  # images of one stratum whose draws are made once for all tests: a page asks for hundreds of tests
Array = NDArray[np.float64]


@dataclass(frozen=True)
class ImageTest:
    """Method a minus method b, in the metric's unit, over ``runs`` common runs and ``images`` test images.

    given: 95 % interval over images, given these runs; p_given: permutation over images. new: 95 % interval over new
    runs and images (NaN for one run); p_new: the mixed permutation. above: probability that a's value is the higher one
    over new runs (given these runs where there is one alone). from_runs: share of the variance of ``new`` that comes from
    the runs, 0..1.
    """

    mean: float
    given: tuple[float, float]
    p_given: float
    new: tuple[float, float]
    p_new: float
    above: float
    from_runs: float
    runs: int
    images: int


def image_test(parts: ArrayLike, strata: ArrayLike, confidence: float = 0.95, draws: int = DRAWS, seed: int = 0) -> ImageTest:
    """Both inferences from ``parts`` (R, N): what each of N images contributes to the difference in each of R runs, so that
    a row's sum is that run's difference. ``strata`` (N,): the test set of each image; images are resampled within.

    Raises ValueError for shapes that do not fit and for values that are not finite.
    """
    x, groups = np.atleast_2d(np.asarray(parts, dtype=float)), np.asarray(strata)
    if x.shape[1] != groups.size or not x.size or not np.isfinite(x).all():
        raise ValueError("image tests need finite parts (runs, images) and one stratum per image, got "
                         f"{x.shape} and {groups.shape}")
    runs, images = x.shape
    rng = np.random.default_rng(seed)
    shared = x.mean(axis=0)
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    mean = float(shared.sum())
    around = np.zeros(draws)
    flipped = np.zeros(draws)
    large = [rows for rows in members if rows.size > SHARED_UP_TO]
    if _effective([shared[rows] for rows in large]) >= SMOOTH_FROM:
        around += _smooth([shared[rows] for rows in large], draws, rng)
        flipped += rng.normal(0, math.sqrt(sum(float(shared[rows] @ shared[rows]) for rows in large)), size=draws)
        members = [rows for rows in members if rows.size <= SHARED_UP_TO]
    for size in sorted({rows.size for rows in members}):
        values = np.stack([shared[rows] for rows in members if rows.size == size], axis=1)
        if 1 < size <= SHARED_UP_TO:
            taken, signs = _draws(size, draws)
            for k, column in enumerate((taken @ (values - values.mean(axis=0)) * math.sqrt(size / (size - 1))).T):
                around += column if not k else column[rng.permutation(draws)]
            for k, column in enumerate((signs @ values).T):
                flipped += column if not k else column[rng.permutation(draws)]
            continue
        for stratum in values.T:
            around += _resampled(stratum, draws, rng)
            flipped += _flipped(stratum, draws, rng)
    tail = 100 * (1 - confidence) / 2
    given = _ends(mean + around, tail)
    p_given = _tail(flipped, mean)
    if runs < 2:
        return ImageTest(mean, given, p_given, (math.nan, math.nan), math.nan, _above(mean + around), math.nan, runs, images)
    between = float(x.sum(axis=1).std(ddof=1)) / math.sqrt(runs)
    student = between * rng.standard_t(runs - 1, size=draws)
    total = between ** 2 + float(around.var())
    return ImageTest(mean, given, p_given, _ends(mean + student + around, tail), _tail(student + flipped, mean),
                     _above(mean + student + around), between ** 2 / total if total > 0 else math.nan, runs, images)


def _effective(strata: list[Array]) -> float:
    """As how many values of one size those of all strata weigh, around zero or their stratum's mean: (sum v^2)^2 / sum v^4, by
    which a sum of them under random signs departs from normal (its kurtosis is 3 - 2 / this)."""
    least = math.inf if strata else 0.0
    for parts in (strata, [values - values.mean() for values in strata]):
        square, fourth = (sum(float((values ** k).sum()) for values in parts) for k in (2, 4))
        least = min(least, square ** 2 / fourth if fourth > 0 else 0.0)
    return least


def _smooth(strata: list[Array], draws: int, rng: np.random.Generator) -> Array:
    """As the sum of :func:`_resampled` over large strata: gamma deviates with its variance and its skewness."""
    centred = [(values - values.mean()) * math.sqrt(values.size / (values.size - 1)) for values in strata]
    square, cube = (sum(float((values ** k).sum()) for values in centred) for k in (2, 3))
    skewness = cube / square ** 1.5
    if abs(skewness) < 1e-3:
        return rng.normal(0, math.sqrt(square), size=draws)
    shape = 4 / skewness ** 2
    return math.copysign(math.sqrt(square / shape), skewness) * (rng.gamma(shape, size=draws) - shape)


@lru_cache(maxsize=6)
def _draws(n: int, draws: int) -> tuple[Array, Array]:
    """For a stratum of ``n`` images: how often each is drawn, and its sign, (draws, n) both. Strata of one test take them
    in an order of their own, by which they are independent of one another."""
    rng = np.random.default_rng([n, draws])
    taken = rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(float)
    return taken, (2 * rng.integers(0, 2, size=(draws, n)) - 1).astype(float)


def _resampled(values: Array, draws: int, rng: np.random.Generator) -> Array:
    """Deviations (draws,) of the sum of ``values`` under resampling of images, as wide as independent images make it."""
    n = values.size
    if n < 2:
        return np.zeros(draws)
    centred = values - values.mean()
    if n > RESAMPLED_UP_TO:
        return rng.normal(0, math.sqrt(n) * float(values.std(ddof=1)), size=draws)
    # Equal values (most images: both methods right) are drawn together: how often each value comes is multinomial.
    levels, counts = np.unique(centred.round(12), return_counts=True)
    taken = rng.multinomial(n, counts / n, size=draws)
    return (taken @ levels) * math.sqrt(n / (n - 1))


def _flipped(values: Array, draws: int, rng: np.random.Generator) -> Array:
    """Sums (draws,) of ``values`` under random signs: per distinct size, how many plus signs come is binomial."""
    levels, counts = np.unique(np.abs(values).round(12), return_counts=True)
    plus = rng.binomial(counts, 0.5, size=(draws, counts.size))
    return (2 * plus - counts) @ levels


def _ends(values: Array, tail: float) -> tuple[float, float]:
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def _tail(null: Array, observed: float) -> float:
    """Two-sided Monte-Carlo p with the +1 of Davison & Hinkley."""
    return float((1 + (np.abs(null) >= abs(observed) - 1e-9).sum()) / (null.size + 1))


def _above(values: Array) -> float:
    return float((values > 0).mean() + 0.5 * (values == 0).mean())

"""Choosing hyper-parameters without target labels, and how far the choice falls short of the best one.

Every scorer takes arrays logged while a candidate ran over unlabelled target images and returns one number, HIGHER is
better for all of them (what papers minimise is negated). A collapsed model flatters most scorers, so candidates whose
predictions lack diversity are refused first. Use a scorer that is not the method's own objective: a method that
minimises entropy is judged by MaNo, MixVal or information maximisation, not by entropy.

Sources: SKADA-bench (Lalou et al. 2024) for the set; prediction entropy (Morerio et al. 2017), soft neighbourhood
density (Saito et al. 2021), importance weighting (Sugiyama et al. 2007), DEV (You et al. 2019), MixVal (Hu et al.
2023), MaNo (Xie et al. 2024), information maximisation (Krause et al. 2010). Deviations: entropies are per image, not
per entry; the diagonal of the similarity is left out exactly; importance weights are clipped at their 99th percentile.
Circular validation needs retraining and is not offered. numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["DIVERSE", "SCORERS", "Candidate", "Selection", "choose", "deep_embedded_validation", "effective_sample_size",
           "importance_weighted", "importance_weights", "information_maximisation", "is_diverse", "mano", "mixval",
           "mixval_pairs", "prediction_entropy", "select", "soft_neighbourhood_density"]

Array = NDArray[np.float64]


def _probabilities(values: ArrayLike) -> Array:
    p = np.asarray(values, dtype=float)
    if p.ndim != 2 or p.shape[0] == 0 or not np.isfinite(p).all() or (p < -1e-6).any():
        raise ValueError(f"probabilities need shape (N, K), N >= 1, finite and not negative; got shape {p.shape}")
    if not np.allclose(p.sum(axis=1), 1, atol=1e-3):
        raise ValueError("rows of probabilities must sum to 1")
    return np.clip(p, 0, 1)


def _entropy(p: Array) -> Array:
    """Natural entropy along the last axis; 0 log 0 is 0."""
    return -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)


def _log_softmax(logits: Array) -> Array:
    z = logits - logits.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


# -- scorers on predictions alone -------------------------------------------------------------------------------------


def prediction_entropy(probabilities: ArrayLike) -> float:
    """Minus the mean entropy (nats per image) of the predictions (N, K)."""
    return -float(_entropy(_probabilities(probabilities)).mean())


def information_maximisation(probabilities: ArrayLike) -> float:
    """H(mean p) - mean H(p) in nats: confident on each image, diverse over all; 0 for a collapsed model."""
    p = _probabilities(probabilities)
    return float(_entropy(p.mean(axis=0)) - _entropy(p).mean())


def soft_neighbourhood_density(probabilities: ArrayLike, temperature: float = 0.05) -> float:
    """Mean entropy of each image's soft neighbourhood: similarities of l2-normalised predictions over ``temperature``,
    itself left out. Needs two images; memory grows with N squared."""
    p = _probabilities(probabilities)
    if len(p) < 2:
        raise ValueError("soft neighbourhood density needs at least two images")
    unit = p / np.linalg.norm(p, axis=1, keepdims=True)
    similarity = unit @ unit.T / temperature
    np.fill_diagonal(similarity, -np.inf)
    return float(_entropy(np.exp(_log_softmax(similarity))).mean())


def mano(logits: ArrayLike, power: float = 4, threshold: float = 5) -> float:
    """Matrix norm of normalised logits (N, K): (mean p^power)^(1/power), with softmax where -mean log p exceeds
    ``threshold``, else the second-order Taylor softmax, which is kinder to badly calibrated logits."""
    z = np.asarray(logits, dtype=float)
    if z.ndim != 2 or z.shape[0] == 0 or not np.isfinite(z).all():
        raise ValueError(f"logits need shape (N, K), N >= 1, and finite values; got shape {z.shape}")
    log_p = _log_softmax(z)
    if -log_p.mean() > threshold:
        p = np.exp(log_p)
    else:
        taylor = 1 + z + z ** 2 / 2  # positive for every real z
        p = taylor / taylor.sum(axis=1, keepdims=True)
    return float((p ** power).mean() ** (1 / power))


def mixval_pairs(predicted: ArrayLike, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which images to mix: (first, second), a random partner for each of the N images. Mix as ``alpha x[first] +
    (1 - alpha) x[second]`` with alpha = 0.55, predict with the adapted model frozen, and give the result to
    :func:`mixval`."""
    n = np.asarray(predicted).size
    return np.arange(n), np.random.default_rng(seed).permutation(n)


def mixval(predicted: ArrayLike, predicted_mixed: ArrayLike, first: ArrayLike, second: ArrayLike) -> float:
    """How often a mixed image is still given its dominant image's class, averaged over pairs within a class and pairs
    across classes (0..1). predicted: classes of the N clean images; predicted_mixed: of the mixed ones."""
    y, mixed = np.asarray(predicted), np.asarray(predicted_mixed)
    a, b = y[np.asarray(first)], y[np.asarray(second)]
    if mixed.shape != a.shape or not a.size:
        raise ValueError(f"{a.size} pairs need as many mixed predictions, got {mixed.size}")
    parts = [float((mixed == a)[group].mean()) for group in (a == b, a != b) if group.any()]
    return float(np.mean(parts))


# -- scorers with labelled source data --------------------------------------------------------------------------------


def importance_weights(source: ArrayLike, target: ArrayLike, method: str = "logistic", clip: float = 99.0,
                       strength: float = 1.0) -> Array:
    """Density ratio p_target / p_source at each source feature vector (N_s, D), mean about 1.

    method: ``"logistic"`` a regularised domain classifier on standardised features (DEV), ``"kde"`` Gaussian kernel
    densities of bandwidth 1 (IW). Weights above the ``clip`` percentile are cut to it: their variance explodes under
    strong shift. ``strength``: l2 regularisation of the classifier.
    """
    s, t = np.atleast_2d(np.asarray(source, dtype=float)), np.atleast_2d(np.asarray(target, dtype=float))
    if s.shape[1] != t.shape[1] or not len(s) or not len(t):
        raise ValueError(f"features need shapes (N_s, D) and (N_t, D), got {s.shape} and {t.shape}")
    if method == "logistic":
        ratio = _domain_ratio(s, t, strength)
    elif method == "kde":
        ratio = np.exp(_log_density(s, t) - _log_density(s, s, without_self=True))
    else:
        raise ValueError(f"method must be 'logistic' or 'kde', not {method!r}")
    ratio = np.minimum(ratio, np.percentile(ratio, clip))
    return ratio / ratio.mean() if ratio.mean() > 0 else np.ones(len(s))


def _domain_ratio(s: Array, t: Array, strength: float) -> Array:
    """(N_s / N_t) p(target | x) / p(source | x) by Newton's method on the logistic loss."""
    both = np.concatenate([s, t])
    spread = both.std(axis=0)
    x = np.c_[(both - both.mean(axis=0)) / np.where(spread > 0, spread, 1), np.ones(len(both))]
    y = np.r_[np.zeros(len(s)), np.ones(len(t))]
    penalty = np.r_[np.full(x.shape[1] - 1, strength), 1e-9]
    w = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        gradient = x.T @ (p - y) + penalty * w
        step = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty), gradient)
        w -= step
        if np.abs(step).max() < 1e-8:
            break
    return len(s) / len(t) * np.exp(np.clip(x[:len(s)] @ w, -30, 30))


def _log_density(at: Array, of: Array, without_self: bool = False) -> Array:
    squared = (at ** 2).sum(1)[:, None] + (of ** 2).sum(1)[None, :] - 2 * at @ of.T
    log_kernel = -np.maximum(squared, 0) / 2
    if without_self:  # a point must not raise its own density
        np.fill_diagonal(log_kernel, -np.inf)
    peak = log_kernel.max(axis=1, keepdims=True)
    return np.log(np.exp(log_kernel - peak).mean(axis=1)) + peak[:, 0]


def effective_sample_size(weights: ArrayLike) -> float:
    """(sum w)^2 / sum w^2: how many source images an importance-weighted mean really rests on. Report it."""
    w = np.asarray(weights, dtype=float)
    return float(w.sum() ** 2 / (w ** 2).sum())


def importance_weighted(correct: ArrayLike, weights: ArrayLike) -> float:
    """Importance-weighted accuracy (0..1) on labelled source images: flags or scores (N,), weights (N,)."""
    return float(np.average(np.asarray(correct, dtype=float), weights=np.asarray(weights, dtype=float)))


def deep_embedded_validation(losses: ArrayLike, weights: ArrayLike) -> float:
    """Minus the DEV risk: the weighted mean of source losses with the weights' mean as control variate."""
    loss, w = np.asarray(losses, dtype=float), np.asarray(weights, dtype=float)
    weighted = loss * w
    variance = w.var()
    eta = 0.0 if variance == 0 else -float(np.mean((weighted - weighted.mean()) * (w - w.mean()))) / float(variance)
    return -float(weighted.mean() + eta * w.mean() - eta)


# -- choosing ---------------------------------------------------------------------------------------------------------


DIVERSE = 0.5  # share of the source model's H(mean p) below which a candidate counts as collapsed


def is_diverse(probabilities: ArrayLike, source_probabilities: ArrayLike, share: float = DIVERSE) -> bool:
    """Whether H(mean p) reaches ``share`` of the source model's on the same images. A collapsed model does not."""
    own = _entropy(_probabilities(probabilities).mean(axis=0))
    source = _entropy(_probabilities(source_probabilities).mean(axis=0))
    return bool(own >= share * source)


@dataclass(frozen=True)
class Candidate:
    """What one hyper-parameter setting left: probabilities (N, K), logits (N, K) where a scorer needs them, and the
    true target accuracy in percent for the gap to the oracle (never looked at in choosing)."""

    probabilities: ArrayLike
    logits: ArrayLike | None = None
    accuracy: float | None = None


def _mano_of(candidate: Candidate) -> float:
    if candidate.logits is None:
        raise ValueError("MaNo needs a candidate's logits")
    return mano(candidate.logits)


SCORERS: dict[str, Callable[[Candidate], float]] = {
    "prediction_entropy": lambda c: prediction_entropy(c.probabilities),
    "information_maximisation": lambda c: information_maximisation(c.probabilities),
    "soft_neighbourhood_density": lambda c: soft_neighbourhood_density(c.probabilities),
    "mano": _mano_of,
}


@dataclass(frozen=True)
class Selection:
    """The choice and how good it was. ``gap``: points of accuracy that the oracle has over the choice; ``spearman``:
    rank correlation of score and true accuracy over the candidates. NaN where accuracies are not known."""

    scorer: str
    chosen: str | None
    scores: dict[str, float]
    refused: tuple[str, ...]
    oracle: str | None
    chosen_accuracy: float
    oracle_accuracy: float
    gap: float
    spearman: float

    def __str__(self) -> str:
        if self.chosen is None:
            return f"{self.scorer}: every candidate has collapsed; keep the source model"
        text = f"{self.scorer} chooses {self.chosen}"
        if math.isfinite(self.gap):
            text += (f": {self.chosen_accuracy:.2f} %; oracle {self.oracle} {self.oracle_accuracy:.2f} %, gap "
                     f"{self.gap:.2f} points; rank correlation {self.spearman:.2f}")
        return text + (f"; refused as collapsed: {', '.join(self.refused)}" if self.refused else "")


def _ranks(values: Array) -> Array:
    return (values[:, None] > values).sum(axis=1) + ((values[:, None] == values).sum(axis=1) + 1) / 2


def select(candidates: Mapping[str, Candidate], scorer: str | Callable[[Candidate], float] = "information_maximisation",
           source_probabilities: ArrayLike | None = None) -> Selection:
    """Choose by a scorer of :data:`SCORERS` or by a function of a candidate. With the source model's predictions on the
    same images, candidates without diversity are refused first (:func:`is_diverse`). The first of equal scores wins.

    Raises ValueError for no candidate and for an unknown scorer."""
    if not candidates:
        raise ValueError("there is no candidate to choose from")
    if isinstance(scorer, str) and scorer not in SCORERS:
        raise ValueError(f"unknown scorer {scorer!r}: choose from {', '.join(SCORERS)}")
    score = SCORERS[scorer] if isinstance(scorer, str) else scorer
    name = scorer if isinstance(scorer, str) else getattr(scorer, "__name__", "scorer")
    scores = {key: score(candidate) for key, candidate in candidates.items()}
    refused = () if source_probabilities is None else tuple(
        key for key, c in candidates.items() if not is_diverse(c.probabilities, source_probabilities))
    return choose(name, scores, {key: float(c.accuracy) for key, c in candidates.items() if c.accuracy is not None}, refused)


def choose(scorer: str, scores: Mapping[str, float], accuracies: Mapping[str, float],
           refused: tuple[str, ...] = ()) -> Selection:
    """The candidate of the highest finite score that is not refused, beside the oracle: the highest of ``accuracies``
    (percent), which are never looked at in choosing."""
    left = [key for key in scores if key not in refused and math.isfinite(scores[key])]
    chosen = max(left, key=lambda key: scores[key]) if left else None
    known = {key: value for key, value in accuracies.items() if math.isfinite(value)}
    oracle = max(known, key=lambda key: known[key]) if known else None
    chosen_accuracy = known.get(chosen, math.nan) if chosen is not None else math.nan
    oracle_accuracy = known[oracle] if oracle is not None else math.nan
    both = [key for key in known if math.isfinite(scores.get(key, math.nan))]
    a = _ranks(np.array([scores[key] for key in both]))
    b = _ranks(np.array([known[key] for key in both]))
    varied = len(both) > 1 and bool(np.ptp(a) > 0) and bool(np.ptp(b) > 0)
    return Selection(scorer, chosen, dict(scores), refused, oracle, chosen_accuracy, oracle_accuracy,
                     oracle_accuracy - chosen_accuracy, float(np.corrcoef(a, b)[0, 1]) if varied else math.nan)

"""Choosing settings without target labels, and how far the choice falls short of the best one.

Every scorer reads what a stream recorded of one domain's answers (:mod:`.sums`) and returns one number, HIGHER is better
for all of them (what papers minimise is negated). A collapsed model flatters most scorers, so candidates whose
predictions lack diversity are refused first. Use a scorer that is not the method's own objective: a method that
minimises entropy is judged by MaNo or information maximisation, not by entropy.

Sources: prediction entropy (Morerio et al. 2017), information maximisation (Krause et al. 2010), MaNo (Xie et al.
2024); SKADA-bench (Lalou et al. 2024) compares them. Entropies are per image, not per entry. numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["DIVERSE", "LABELS", "SCORERS", "Selection", "choose", "is_diverse"]

SCORERS: dict[str, Callable[[Mapping[str, float]], float]] = {
    "prediction_entropy": lambda u: -u["entropy"],
    "information_maximisation": lambda u: u["marginal_entropy"] - u["entropy"],
    "mano": lambda u: u["mano"],
}
LABELS = {name: "MaNo" if name == "mano" else name.replace("_", " ") for name in SCORERS}
DIVERSE = 0.5  # share of the source model's H(mean p) below which a candidate counts as collapsed


def is_diverse(own: Mapping[str, float], source: Mapping[str, float], share: float = DIVERSE) -> bool:
    """Whether H(mean p) of a domain reaches ``share`` of the source model's there. A collapsed model's does not."""
    return own["marginal_entropy"] >= share * source["marginal_entropy"]


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


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return (values[:, None] > values).sum(axis=1) + ((values[:, None] == values).sum(axis=1) + 1) / 2


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

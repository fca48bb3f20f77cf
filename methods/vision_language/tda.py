"""TDA: caches of certain and of uncertain test features, without training."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from cl_bench import Backbone
from cl_bench.ranges import Amount, Share, Size

from ._cache import HIGH, LOW, NEGATIVE_ALPHA, NEGATIVE_BETA, Cache, Item, certainty, query_of
from ._views import Views

__all__ = ["Tda"]


class Tda(Views):
    """What similar images were taken for is added to an image's logits, what uncertain ones were not is taken off.

    Karmanov et al., "Efficient Test-Time Adaptation of Vision-Language Models", CVPR 2024 (kdiAAA/TDA), with ImageNet's
    settings. Online: an image enters the caches before it is answered; a reset clears them. The released alpha and beta
    differ by test set, which is tuning on them; here one pair holds for all.

    Args:
        views: 1 as published but for ImageNet's family (64); then the mean of the confident ``share`` is the query.
        share: of the views that are kept.
        alpha, beta: weight and sharpness of the positive cache.
        shots, negatives: items per class in either cache.
    """

    family: ClassVar[str] = "test-time"
    paper: ClassVar[str] = "Karmanov et al. (TDA), CVPR 2024"

    def __init__(self, backbone: Backbone, *, views: Size = 1, alpha: Amount = 2.0, beta: Amount = 5.0, shots: Size = 3,
                 negatives: Size = 2, share: Share = 0.1, area: Share = 0.08, flip: bool = True) -> None:  # fmt: skip
        super().__init__(backbone, views=views, area=area, flip=flip)
        self.alpha, self.beta, self.shots, self.negatives, self.share = alpha, beta, shots, negatives, share

    def restart_memory(self) -> None:
        self.positive: dict[int, list[Item]] = {}
        self.negative: dict[int, list[Item]] = {}

    def score(self, f: Tensor, text: Tensor) -> Tensor:
        positive, negative = Cache(self.shots, self.positive), Cache(self.negatives, self.negative)
        q = query_of(f, text, float(self.scale), self.share)
        label = int(q.logits.argmax())
        positive.insert(label, (q.feature, float(q.entropy), None))
        if LOW < certainty(q.entropy, len(text)) < HIGH:
            negative.insert(label, (q.feature, float(q.entropy), q.p))
        z = q.logits + self.alpha * positive.answer(q.feature, len(text), self.beta)
        return z - NEGATIVE_ALPHA * negative.answer(q.feature, len(text), NEGATIVE_BETA)

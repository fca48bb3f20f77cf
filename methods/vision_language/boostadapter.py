"""BoostAdapter: TDA whose cache is enriched, for one image at a time, with confident crops of that image."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from cl_bench import Backbone
from cl_bench.ranges import Amount, Share, Size, Whole

from ._cache import HIGH, LOW, NEGATIVE_ALPHA, NEGATIVE_BETA, Cache, Item, certainty, query_of
from ._views import Views, confident, entropies

__all__ = ["Boostadapter"]


class Boostadapter(Views):
    """The positive cache, and for the image at hand the most confident of its own views beside it.

    Zhang et al., "BoostAdapter: Improving Vision-Language Test-Time Adaptation via Regional Bootstrapping", NeurIPS 2024
    (taolinzhang/BoostAdapter). Online. As released the negative cache is first in, first out.

    Args:
        query: ``image``: the image itself asks (fine-grained sets); ``mean``: the mean of its confident views.
        delta: items per class that the views may add; 0 still lets them compete for the places there are.
        alpha, beta, shots, negatives, share: as of ``tda``.
    """

    family: ClassVar[str] = "test-time"
    paper: ClassVar[str] = "Zhang et al. (BoostAdapter), NeurIPS 2024"

    def __init__(self, backbone: Backbone, *, views: Size = 64, query: Literal["image", "mean"] = "image", delta: Whole = 1,
                 alpha: Amount = 2.0, beta: Amount = 5.0, shots: Size = 3, negatives: Size = 2, share: Share = 0.1,
                 area: Share = 0.08, flip: bool = True) -> None:  # fmt: skip
        super().__init__(backbone, views=views, area=area, flip=flip)
        self.query, self.delta, self.alpha, self.beta = query, delta, alpha, beta
        self.shots, self.negatives, self.share = shots, negatives, share

    def restart_memory(self) -> None:
        self.positive: dict[int, list[Item]] = {}
        self.negative: dict[int, list[Item]] = {}

    def score(self, f: Tensor, text: Tensor) -> Tensor:
        positive, negative = Cache(self.shots, self.positive), Cache(self.negatives, self.negative, fifo=True)
        q = query_of(f[:1] if self.query == "image" else f, text, float(self.scale), self.share)
        label = int(q.logits.argmax())
        positive.insert(label, (q.feature, float(q.entropy), None))
        boosted = positive.copy()
        logits = self.scale * f @ text.T
        values = entropies(logits)
        for k in confident(values, self.share).tolist() if len(f) > 1 else ():
            boosted.insert(int(logits[k].argmax()), (f[k], float(values[k]), None), self.shots + self.delta)
        if LOW < certainty(q.entropy, len(text)) < HIGH:
            negative.insert(label, (q.feature, float(q.entropy), q.p))
        z = q.logits + self.alpha * boosted.answer(q.feature, len(text), self.beta)
        return z - NEGATIVE_ALPHA * negative.answer(q.feature, len(text), NEGATIVE_BETA)

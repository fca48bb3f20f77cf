"""SHOT, online: a frozen classifier, a backbone that makes its predictions certain one by one and diverse together."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench import Backbone, Experience
from cl_bench.adaptation import Learning, TestTimeMethod, batch_statistics, entropy, masked_mean
from cl_bench.ranges import Amount, Share

from .._differs import Differs

__all__ = ["SHOT"]


class SHOT(TestTimeMethod):
    """Information maximisation plus pseudo-labels of confident images, over the whole backbone; the head is frozen.

    Liang et al., "Do We Really Need to Access the Source Data? Source Hypothesis Transfer for Unsupervised Domain
    Adaptation", ICML 2020 (tim-learn/SHOT), in the online form of matsuolab/T3A and LINs-lab/ttab: one step per batch,
    the answer is that of the adapting forward pass. A batch without a confident image has no pseudo-label term, where
    that code computes a mean over nothing. BatchNorm uses the batch's statistics (ttab adapts in train mode); LayerNorm
    and GroupNorm stay as they are. The diversity term fails where labels are not balanced, and for single images.

    Args:
        lr: no online rate is published (ttab searches one with labels): 1e-3 is what fiveai/LAME uses.
        optimizer: ``sgd`` as in the original (momentum 0.9, Nesterov) and ttab; T3A's form uses ``adam``.
        pseudo: weight of the pseudo-label term; 0 = SHOT-IM.
        threshold: an image is confident above this probability.
        diversity: weight of the batch's mean prediction's negative entropy.
    """

    paper: ClassVar[str] = "Liang et al., ICML 2020"
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("The released code adds 1e-5 to every probability in the entropy's logarithm, and labels a whole target set by "
                "nearest centroid before each pass.", "tim-learn/SHOT@f7d555a0 object/loss.py:12", table="released code"),
        Differs("The online form of matsuolab/T3A adapts in evaluation mode, with BatchNorm's source statistics.",
                "matsuolab/T3A@ff8cde5f domainbed/adapt_algorithms.py:411"),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-3,
        optimizer: Literal["adam", "sgd"] = "sgd",
        pseudo: Amount = 0.3,
        threshold: Share = 0.9,
        diversity: Amount = 1.0,
        **learning: Learning,
    ) -> None:
        super().__init__(backbone, lr=lr, optimizer=optimizer, **learning)
        self.pseudo, self.threshold, self.diversity = pseudo, threshold, diversity

    def build(self, source: Experience | None) -> None:
        batch_statistics(self.model)
        head = {id(p) for p in self.model.head.parameters()}
        self.optimise(p for p in self.model.backbone.parameters() if id(p) not in head)

    def adapt(self, x: Tensor) -> Tensor:
        z = self.model(x)
        p = z.softmax(1)
        mean = p.mean(0)
        loss = entropy(z).mean() + self.diversity * (mean * torch.log(mean + 1e-5)).sum()
        if self.pseudo:
            top, label = p.detach().max(1)
            sure = top > self.threshold
            self.counts["selected"] += int(sure.sum())
            loss = loss + self.pseudo * masked_mean(F.cross_entropy(z, label, reduction="none"), sure)
        self.step(loss)
        return z

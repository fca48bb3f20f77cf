"""ROID: certainty- and diversity-weighted self-training, weight ensembling with the source, prior correction."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench import Backbone, Experience
from cl_bench.adaptation import (
    Learning,
    TestTimeMethod,
    augment,
    batch_statistics,
    entropy,
    norm_parameters,
    soft_likelihood_ratio,
    symmetric_cross_entropy,
)
from cl_bench.ranges import Amount, Positive, Share

from .._differs import Differs

__all__ = ["ROID"]


class ROID(TestTimeMethod):
    """Self-training on certain and diverse samples, weights kept near the source, answers corrected by the prior.

    Marsden et al., "Universal Test-time Adaptation through Weight Ensembling, Diversity Weighting, and Prior
    Correction", WACV 2024 (mariodoebler/test-time-adaptation). The correction multiplies logits by a factor per class,
    as the code does; it is no Bayesian correction of the prior. Where all samples are equally certain or equally
    diverse that weight is 1 (the original divides by zero).

    Args:
        lr: CIFAR 1e-3 with Adam; ImageNet 2.5e-4 with SGD.
        source_momentum: share of the adapted weights that stays at each ensembling with the source.
        prior_momentum: of the running class probabilities that diversity is measured against.
        temperature: of the sample weights.
        correct_prior: multiply logits by the prior correction.
    """

    paper: ClassVar[str] = "Marsden et al., WACV 2024"
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("Where all samples are equally diverse or certain their weight is 0 / 0; here it is 1.",
                "mariodoebler/test-time-adaptation@8b2ed632 classification/methods/roid.py:65", table="released code"),
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {"imagenet": {"lr": 2.5e-4, "optimizer": "sgd"}}
    output = "scaled_logits"

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-3,
        optimizer: Literal["adam", "sgd"] = "adam",
        source_momentum: Share = 0.99,
        prior_momentum: Share = 0.9,
        temperature: Positive = 1 / 3,
        correct_prior: bool = True,
        **learning: Learning,
    ) -> None:
        super().__init__(backbone, lr=lr, optimizer=optimizer, **learning)
        self.source_momentum, self.prior_momentum, self.temperature = source_momentum, prior_momentum, temperature
        self.correct_prior = correct_prior

    def build(self, source: Experience | None) -> None:
        batch_statistics(self.model)
        self.optimise(norm_parameters(self.model))
        self.narrowed()

    def narrowed(self) -> None:
        self.prior = torch.full((self.model.classes,), 1 / self.model.classes, device=self.model.where)

    def adapt(self, x: Tensor) -> Tensor:
        z = self.model(x)
        weight, keep = self.weigh(z.detach())
        rows = keep.nonzero().squeeze(1)
        loss = (weight * soft_likelihood_ratio(z)).sum()
        z2 = self.model(augment(x[rows], self.rng, padding="reflect", blur=False, noise=0))
        loss = loss + (weight[rows] * symmetric_cross_entropy(z2, z[rows])).sum()
        if self.step(loss / self.stream.batch_size):
            self.counts["selected"] += len(rows)
            self.ensemble()
        return self.corrected(z.detach())

    @torch.no_grad()
    def weigh(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (N,), 0 where a sample is less diverse than the mean, and the mask of the others; moves the prior."""
        p = z.softmax(1)
        diverse = unit_range(1 - F.cosine_similarity(self.prior.unsqueeze(0), p))
        keep = diverse >= diverse.mean()
        weight = torch.exp(diverse * unit_range(-entropy(z)) / self.temperature)
        self.prior = self.prior_momentum * self.prior + (1 - self.prior_momentum) * p.mean(0)
        return torch.where(keep, weight, 0.0), keep

    @torch.no_grad()
    def ensemble(self) -> None:
        """theta <- 0.99 theta + 0.01 theta_0."""
        torch._foreach_lerp_(self.trained(), self.start, 1 - self.source_momentum)

    def corrected(self, z: Tensor) -> Tensor:
        """Logits times the prior correction: (pi + s) / (1 + s C), s = max(1/N, 1/C) / max pi."""
        if not self.correct_prior:
            return z / z.shape[1]  # the mean factor of the correction
        n, c = z.shape
        prior = z.softmax(1).mean(0)
        smooth = max(1 / n, 1 / c) / prior.max()
        return z * (prior + smooth) / (1 + smooth * c)

    def outputs(self, x: Tensor) -> Tensor:
        return self.corrected(self.model(x))


def unit_range(v: Tensor) -> Tensor:
    """Values (N,) scaled to [0, 1]; zeros where all are equal."""
    low, high = v.aminmax()
    return torch.where(high > low, (v - low) / (high - low).clamp_min(torch.finfo(v.dtype).tiny), 0.0)

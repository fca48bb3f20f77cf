"""CMF: ROID with a Kalman-filtered model in place of the fixed source as the partner of weight ensembling."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch

from cl_bench import Backbone, Experience
from cl_bench.adaptation import Learning
from cl_bench.ranges import Amount, Positive, Share

from .._differs import Differs
from .roid import ROID

__all__ = ["CMF"]


class CMF(ROID):
    """ROID whose weights are kept near a hidden model that filters them, instead of near the source.

    Lee & Chang, "Continual Momentum Filtering on Parameter Space for Online Test-time Adaptation", ICLR 2024
    (j-pong/CMF). float32 throughout (the original runs in float16); a reset also clears the filter's variance, which
    the original forgets.

    Args:
        lr: CIFAR 1e-3 with Adam; ImageNet 2.5e-4 with SGD.
        alpha: how much of the hidden model stays when it is drawn to the source.
        gamma: how much of the adapted weights stays when they are drawn to the hidden model.
        q: process noise, for 38,400 trained scalars; it is scaled by how many there are.
        prior_momentum, temperature, correct_prior: as ROID's.
    """

    paper: ClassVar[str] = "Lee & Chang, ICLR 2024"
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("The authors' code runs in float16, with a float32 copy of what is trained; here all is float32.",
                "j-pong/CMF@7edc1d73 methods/cmf.py:64", table="released code"),
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {"imagenet": {"lr": 2.5e-4, "optimizer": "sgd"}}

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-3,
        optimizer: Literal["adam", "sgd"] = "adam",
        alpha: Share = 0.99,
        gamma: Share = 0.99,
        q: Amount = 0.005,
        prior_momentum: Share = 0.9,
        temperature: Positive = 1 / 3,
        correct_prior: bool = True,
        **learning: Learning,
    ) -> None:
        super().__init__(
            backbone, lr=lr, optimizer=optimizer, prior_momentum=prior_momentum, temperature=temperature,
            correct_prior=correct_prior, **learning
        )
        self.alpha, self.gamma, self.q = alpha, gamma, q

    def build(self, source: Experience | None) -> None:
        super().build(source)
        self.hidden = [p.clone() for p in self.start]
        self.variance = 0.0

    @torch.no_grad()
    def ensemble(self) -> None:
        noise = self.q * sum(p.numel() for p in self.start) / 38_400
        torch._foreach_lerp_(self.hidden, self.start, 1 - self.alpha)
        predicted = self.alpha**2 * self.variance + noise
        gain = (1 - noise) / (predicted + 1 - noise)
        gain = max(gain, 0.89)
        gain = 1.0 if gain >= 0.9999 else gain
        self.variance = gain * predicted
        torch._foreach_lerp_(self.hidden, self.trained(), 1 - gain)
        torch._foreach_lerp_(self.trained(), self.hidden, 1 - self.gamma)

"""SAR: sharpness-aware entropy minimisation on reliable samples, with a reset when it collapses."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from torch import Tensor

from cl_bench import Backbone, Experience
from cl_bench.adaptation import (
    Learning,
    TestTimeMethod,
    ascend_,
    batch_statistics,
    entropy,
    masked_mean,
    put_back_,
    shallow_norm_parameters,
)
from cl_bench.ranges import Amount

from .._differs import Differs

__all__ = ["SAR"]


class SAR(TestTimeMethod):
    """Sharpness-aware entropy minimisation of reliable samples over shallow norm layers; restarts on collapse.

    Niu et al., "Towards Stable Test-Time Adaptation in Dynamic Wild World", ICLR 2023 (mr-eggplant/SAR). The original
    resets its entropy average by a local variable that is overwritten again; here a reset clears it. Where a filter
    leaves nothing, no step is taken (the original steps with a gradient of NaN or none).

    Args:
        lr: CIFAR 1e-3 (mariodoebler/test-time-adaptation); ImageNet 2.5e-4 (ResNet-50), 1e-3 B / 64 (ViT-B/16).
        optimizer: SGD with momentum 0.9 underneath.
        margin: E0 as a fraction of ln C.
        rho: radius of the ascent.
        reset_below: e_m, the running entropy (nats) below which the model counts as collapsed. Published for
            ImageNet and kept for CIFAR, where 10 classes reach it quickly.
    """

    paper: ClassVar[str] = "Niu et al., ICLR 2023"
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("A reset clears the running entropy, and the line after it writes the old value back.",
                "mr-eggplant/SAR@20f6e24b sar.py:52", table="released code"),
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {"imagenet": {"lr": 2.5e-4}}
    nesterov: ClassVar[bool] = False

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-3,
        optimizer: Literal["adam", "sgd"] = "sgd",
        margin: Amount = 0.4,
        rho: Amount = 0.05,
        reset_below: Amount = 0.2,
        **learning: Learning,
    ) -> None:
        super().__init__(backbone, lr=lr, optimizer=optimizer, **learning)
        self.margin, self.rho, self.reset_below = margin, rho, reset_below

    def build(self, source: Experience | None) -> None:
        batch_statistics(self.model)
        self.optimise(shallow_norm_parameters(self.model))
        self.entropy_average: float | None = None

    def adapt(self, x: Tensor) -> Tensor:
        z = self.model(x)
        h, e0 = entropy(z), self.margin * math.log(self.model.classes)
        first = h.detach() < e0
        if not self.gradient(masked_mean(h, first), first):
            return z
        old = ascend_(self.trained(), self.rho)
        h = entropy(self.model(x))  # the whole batch, so that its statistics are the same
        second = first & (h.detach() < e0)
        go = self.gradient(masked_mean(h, second), second)
        put_back_(self.trained(), old)
        if go:
            self.take_step()
            e = self.entropy_average
            self.entropy_average = self.last_loss if e is None else 0.9 * e + 0.1 * self.last_loss
            if self.entropy_average < self.reset_below:
                self.restart()
                self.entropy_average = None
        return z

"""DeYO: trust a confident sample only if destroying its shape makes the model less confident."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench import Backbone, Experience
from cl_bench.adaptation import (
    Learning,
    TestTimeMethod,
    batch_statistics,
    entropy,
    masked_mean,
    shallow_norm_parameters,
)
from cl_bench.ranges import Amount, Size

__all__ = ["DeYO"]


class DeYO(TestTimeMethod):
    """Minimises the entropy of samples that are confident and lose confidence when their patches are shuffled.

    Lee et al., "Entropy is not Enough for Test-Time Adaptation: From the Perspective of Disentangled Factors", ICLR
    2024 (Jhyun17/DeYO). The second forward sees only the confident samples, so its batch statistics differ, as in the
    original.

    Args:
        lr: CIFAR 1e-3 with Adam; ImageNet 2.5e-4 with SGD (ViT-B/16: 1e-3 B / 64).
        margin: samples with H below this fraction of ln C pass the first filter.
        weight_margin: E0 of the weight exp(E0 - H), as a fraction of ln C.
        plpd: tau, how far the pseudo-label's probability must fall (0.3 in the paper's mild scenario).
        patches: patches per side that are shuffled.
    """

    paper: ClassVar[str] = "Lee et al., ICLR 2024"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"imagenet": {"lr": 2.5e-4, "optimizer": "sgd"}}
    nesterov: ClassVar[bool] = False

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-3,
        optimizer: Literal["adam", "sgd"] = "adam",
        margin: Amount = 0.5,
        weight_margin: Amount = 0.4,
        plpd: float = 0.2,
        patches: Size = 4,
        **learning: Learning,
    ) -> None:
        super().__init__(backbone, lr=lr, optimizer=optimizer, **learning)
        self.margin, self.weight_margin, self.plpd, self.patches = margin, weight_margin, plpd, patches

    def build(self, source: Experience | None) -> None:
        batch_statistics(self.model)
        self.optimise(shallow_norm_parameters(self.model))

    def adapt(self, x: Tensor) -> Tensor:
        z = self.model(x)
        h, scale = entropy(z), math.log(self.model.classes)
        rows = (h.detach() < self.margin * scale).nonzero().squeeze(1)
        if len(rows) == 0:
            self.counts["skipped"] += 1
            return z
        with torch.no_grad():
            p, label = z[rows].softmax(1).max(1)
            broken = self.model(self.shuffled(x[rows])).softmax(1)
            drop = p - broken.gather(1, label.unsqueeze(1)).squeeze(1)
            weight = torch.exp(self.weight_margin * scale - h[rows]) + torch.exp(drop)
        keep = drop > self.plpd
        self.step(masked_mean(weight * h[rows], keep), keep)
        return z

    def shuffled(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) with their patches in random order, another one for every image."""
        k, (height, width) = self.patches, x.shape[-2:]
        even = (height // k * k, width // k * k)
        if even != (height, width):
            x = F.interpolate(x, size=even, mode="bilinear", antialias=True)
        cells = x.unflatten(3, (k, -1)).unflatten(2, (k, -1)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        order = torch.rand(cells.shape[:2], generator=self.rng.on(x.device), device=x.device).argsort(1)
        cells = cells.gather(1, order.view(*order.shape, 1, 1, 1).expand_as(cells))
        x = cells.unflatten(1, (k, k)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        if even != (height, width):
            x = F.interpolate(x, size=(height, width), mode="bilinear", antialias=True)
        return x

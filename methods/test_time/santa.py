"""SANTA: norm layers aligned with a frozen source model and with source prototypes; no teacher."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from cl_bench import Backbone, Experience
from cl_bench.adaptation import (
    Learning,
    TestTimeMethod,
    augment,
    batch_statistics,
    cross_entropy_to,
    norm_parameters,
    projection_head,
    prototype_contrast,
    prototypes,
    source_batches,
    teacher_of,
)
from cl_bench.ranges import Amount, Count, Positive, Size

__all__ = ["SANTA"]


class SANTA(TestTimeMethod):
    """Aligns norm layers with a frozen source model's answers and pulls features towards source prototypes.

    Chakrabarty et al., "SANTA: Source Anchoring Network and Target Alignment for Continual Test Time Adaptation", TMLR
    2023. The anchor stands inside the logarithm and gets no gradient; the gradient acts on the weighting distribution.

    Args:
        lr: CIFAR 1e-3 with Adam; ImageNet 1e-2 with SGD.
        anchor_weight, contrast_weight: of the two losses.
        temperature: of the contrastive loss.
        projection: width of the projector.
        prototype_samples: at most this many source images give prototypes.
    """

    paper: ClassVar[str] = "Chakrabarty et al., TMLR 2023"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"imagenet": {"lr": 1e-2, "optimizer": "sgd"}}
    needs: ClassVar[frozenset[str]] = frozenset({"source"})

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-3,
        optimizer: Literal["adam", "sgd"] = "adam",
        anchor_weight: Amount = 1.0,
        contrast_weight: Amount = 1.0,
        temperature: Positive = 0.1,
        projection: Size = 128,
        prototype_samples: Count = 100_000,
        **learning: Learning,
    ) -> None:
        super().__init__(backbone, lr=lr, optimizer=optimizer, **learning)
        self.anchor_weight, self.contrast_weight, self.temperature = anchor_weight, contrast_weight, temperature
        self.projection = projection
        self.prototype_samples = prototype_samples

    def build(self, source: Experience | None) -> None:
        assert source is not None
        batch_statistics(self.model)
        data = source_batches(source, self.stream.batch_size, self.rng, self.model.where, self.prototype_samples)
        self.prototypes = prototypes(self.model, data)
        self.anchor = teacher_of(self.model)
        self.projector = projection_head(self.prototypes.shape[1], self.projection, self.rng, self.prototypes)
        self.optimise(norm_parameters(self.model), self.projector.parameters())

    def adapt(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            anchor = self.anchor(x)
        plain, other = self.model.features(x), self.model.features(augment(x, self.rng))
        z, z2 = self.model.classify(plain), self.model.classify(other)
        align = 0.5 * cross_entropy_to(z, anchor) + 0.5 * cross_entropy_to(z2, anchor)
        pull = prototype_contrast(plain, other, self.prototypes, self.projector, self.temperature)
        self.step(self.anchor_weight * align.mean() + self.contrast_weight * pull)
        return z

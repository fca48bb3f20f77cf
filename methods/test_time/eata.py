"""EATA and ETA: entropy minimisation on reliable, non-redundant samples, with an anchor against forgetting."""

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
    fisher,
    masked_mean,
    norm_parameters,
    source_batches,
)
from cl_bench.ranges import Amount, Count

from .._differs import Differs

__all__ = ["EATA", "ETA"]


class ETA(TestTimeMethod):
    """Minimises the weighted entropy of samples that are confident and unlike what was seen before.

    EATA (below) without its penalty. Samples with H >= E0 = margin ln C are left out, and so are those whose
    probabilities are too similar (cosine) to their running mean m over earlier selected samples; the rest weigh
    exp(E0 - H).

    Args:
        lr: CIFAR 1e-3 with Adam and batches of 200; ImageNet 2.5e-4 with SGD and batches of 64.
        margin: E0 as a fraction of ln C.
        redundancy: epsilon; CIFAR-10 0.4, CIFAR-100 0.1, ImageNet 0.05.
    """

    paper: ClassVar[str] = "Niu et al., ICML 2022"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cifar100": {"redundancy": 0.1}, "imagenet": {"lr": 2.5e-4, "optimizer": "sgd", "redundancy": 0.05},
    }
    nesterov: ClassVar[bool] = False

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-3,
        optimizer: Literal["adam", "sgd"] = "adam",
        margin: Amount = 0.4,
        redundancy: float = 0.4,
        **learning: Learning,
    ) -> None:
        super().__init__(backbone, lr=lr, optimizer=optimizer, **learning)
        self.margin, self.redundancy = margin, redundancy

    def build(self, source: Experience | None) -> None:
        batch_statistics(self.model)
        self.optimise(norm_parameters(self.model))
        self.mean_p: Tensor | None = None

    def narrowed(self) -> None:
        self.mean_p = None

    def adapt(self, x: Tensor) -> Tensor:
        z = self.model(x)
        h, e0 = entropy(z), self.margin * math.log(self.model.classes)
        p = z.detach().softmax(1)
        keep = h.detach() < e0
        if self.mean_p is not None:
            keep &= F.cosine_similarity(self.mean_p.unsqueeze(0), p).abs() < self.redundancy
        weight = torch.exp(e0 - h.detach())
        if self.step(masked_mean(weight * h, keep) + self.penalty(), keep):
            mean = masked_mean(p, keep.unsqueeze(1), dim=0)
            self.mean_p = mean if self.mean_p is None else 0.9 * self.mean_p + 0.1 * mean
        return z

    def penalty(self) -> Tensor | float:
        """What EATA adds against forgetting."""
        return 0.0


class EATA(ETA):
    """ETA with a Fisher-weighted penalty that holds parameters near the source: less forgetting.

    Niu et al., "Efficient Test-Time Model Adaptation without Forgetting", ICML 2022 (mr-eggplant/EATA). The Fisher
    information is the square of batch-mean gradients, taken once with pseudo-labels; the original takes unlabelled
    validation images, here source images. ``reset()`` also clears the running mean m, which the original forgets.

    Args:
        fisher_weight: beta_F; CIFAR 1, ImageNet 2000.
        fisher_samples: how many source images the Fisher information is estimated on.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"source"})
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("The Fisher information is taken on clean images of the test set; here on source images.",
                "mr-eggplant/EATA@f739b366 main.py:144", table="released code"),
        Differs("A reset brings weights and optimizer back and leaves the running mean of the answers as it is.",
                "mr-eggplant/EATA@f739b366 eata.py:59", table="released code"),
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cifar100": {"redundancy": 0.1},
        "imagenet": {"lr": 2.5e-4, "optimizer": "sgd", "redundancy": 0.05, "fisher_weight": 2000.0},
    }

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-3,
        optimizer: Literal["adam", "sgd"] = "adam",
        margin: Amount = 0.4,
        redundancy: float = 0.4,
        fisher_weight: Amount = 1.0,
        fisher_samples: Count = 2000,
        **learning: Learning,
    ) -> None:
        super().__init__(backbone, lr=lr, optimizer=optimizer, margin=margin, redundancy=redundancy, **learning)
        self.fisher_weight, self.fisher_samples = fisher_weight, fisher_samples

    def build(self, source: Experience | None) -> None:
        super().build(source)
        assert source is not None
        data = source_batches(source, self.stream.batch_size, self.rng, self.model.where, self.fisher_samples)
        self.fisher = fisher(self.model, self.trained(), data)

    def penalty(self) -> Tensor | float:
        parts = zip(self.fisher, self.trained(), self.start, strict=True)
        return self.fisher_weight * torch.stack([(f * (p - s).square()).sum() for f, p, s in parts]).sum()

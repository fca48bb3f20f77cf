"""TENT: minimise the entropy of predictions over the affine parameters of normalisation layers."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from cl_bench import Experience
from cl_bench.adaptation import TestTimeMethod, batch_statistics, entropy, norm_parameters

from .._differs import Differs

__all__ = ["Tent"]


class Tent(TestTimeMethod):
    """Minimises the mean prediction entropy over norm affine parameters, one step per batch.

    Wang et al., "Tent: Fully Test-Time Adaptation by Entropy Minimization", ICLR 2021 (DequanWang/tent). The original
    adapts BatchNorm alone; LayerNorm and GroupNorm are included here, as later work does.

    Args:
        lr: CIFAR 1e-3 with Adam and batches of 200; ImageNet 2.5e-4 with SGD and batches of 64 (ViT-B/16: 1e-3 B / 64).
    """

    paper: ClassVar[str] = "Wang et al., ICLR 2021"
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("The authors' code adapts BatchNorm alone; copies of it, and this one, LayerNorm and GroupNorm too.",
                "DequanWang/tent@e9e926a6 tent.py:104", table="released code"),
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {"imagenet": {"lr": 2.5e-4, "optimizer": "sgd"}}

    def build(self, source: Experience | None) -> None:
        batch_statistics(self.model)
        self.optimise(norm_parameters(self.model))

    def adapt(self, x: Tensor) -> Tensor:
        z = self.model(x)
        self.step(entropy(z).mean())
        return z

"""RDumb: ETA, thrown away and started again every thousand batches."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from cl_bench import Backbone, Experience
from cl_bench.adaptation import Learning
from cl_bench.ranges import Amount, Count

from .eata import ETA

__all__ = ["RDumb"]


class RDumb(ETA):
    """ETA with a full reset every ``period`` batches; on long streams this beats most continual methods.

    Press et al., "RDumb: A simple approach that questions our progress in continual test-time adaptation", NeurIPS 2023
    (oripress/CCC). Batches without a step count too. A stream of 15 x 50 batches (CIFAR-C) never reaches 1,000.

    Args:
        lr, margin, redundancy: as ETA; redundancy 0.05 and SGD 2.5e-4 on ImageNet.
        period: K, in batches.
    """

    paper: ClassVar[str] = "Press et al., NeurIPS 2023"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"imagenet": {"lr": 2.5e-4, "optimizer": "sgd", "redundancy": 0.05}}

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-3,
        optimizer: Literal["adam", "sgd"] = "adam",
        margin: Amount = 0.4,
        redundancy: float = 0.4,
        period: Count = 1000,
        **learning: Learning,
    ) -> None:
        super().__init__(backbone, lr=lr, optimizer=optimizer, margin=margin, redundancy=redundancy, **learning)
        self.period = period

    def build(self, source: Experience | None) -> None:
        super().build(source)
        self.calls = 0

    def adapt(self, x: Tensor) -> Tensor:
        if self.calls > 0 and self.calls % self.period == 0:
            self.restart()
            self.mean_p = None
        self.calls += 1
        return super().adapt(x)

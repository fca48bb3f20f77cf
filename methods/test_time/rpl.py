"""RPL: self-training with a loss that is robust to wrong pseudo-labels."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from cl_bench import Backbone, Experience
from cl_bench.adaptation import Learning, TestTimeMethod, batch_statistics, generalised_cross_entropy, norm_parameters
from cl_bench.ranges import Amount, Positive

__all__ = ["RPL"]


class RPL(TestTimeMethod):
    """Trains norm layers on hard pseudo-labels with the generalised cross-entropy (1 - p^q) / q.

    Rusak et al., "If your data distribution shifts, use self-learning", TMLR 2022; as in
    mariodoebler/test-time-adaptation.

    Args:
        lr: CIFAR 1e-3 with Adam; ImageNet 5e-4 with SGD.
        q: 1 is the mean absolute error, towards 0 the cross-entropy.
    """

    paper: ClassVar[str] = "Rusak et al., TMLR 2022"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"imagenet": {"lr": 5e-4, "optimizer": "sgd"}}

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-3,
        optimizer: Literal["adam", "sgd"] = "adam",
        q: Positive = 0.8,
        **learning: Learning,
    ) -> None:
        super().__init__(backbone, lr=lr, optimizer=optimizer, **learning)
        self.q = q

    def build(self, source: Experience | None) -> None:
        batch_statistics(self.model)
        self.optimise(norm_parameters(self.model))

    def adapt(self, x: Tensor) -> Tensor:
        z = self.model(x)
        self.step(generalised_cross_entropy(z, self.q).mean())
        return z

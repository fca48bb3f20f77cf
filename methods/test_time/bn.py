"""BN adaptation: normalise with the statistics of the test stream; no gradients."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from cl_bench import Backbone, Experience
from cl_bench.adaptation import Learning, MixedNorm, TestTimeMethod, batch_statistics, convert
from cl_bench.ranges import Share, Whole

__all__ = ["BN", "BNAlpha", "BNEMA"]


class BN(TestTimeMethod):
    """Normalises every batch with its own mean and variance ("norm", BN-1). Equals the source model without BatchNorm.

    Nado et al., "Evaluating Prediction-Time Batch Normalization for Robustness under Covariate Shift", 2020; Schneider
    et al., NeurIPS 2020.
    """

    adapts: ClassVar[bool] = False
    paper: ClassVar[str] = "Nado et al., 2020; Schneider et al., NeurIPS 2020"

    def build(self, source: Experience | None) -> None:
        batch_statistics(self.model)


class BNAlpha(TestTimeMethod):
    """Mixes source and batch statistics: (1 - alpha) source + alpha batch, mean and variance alike.

    Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS 2020
    (bethgelab/robustness); read with the unbiased batch variance, as mariodoebler/test-time-adaptation does.

    Args:
        alpha: weight of the batch.
        prior: the paper's pseudo-count N of source images; alpha is then n / (N + n) for a batch of n images.
    """

    adapts: ClassVar[bool] = False
    paper: ClassVar[str] = "Schneider et al., NeurIPS 2020"
    name: ClassVar[str] = "bn_alpha"

    def __init__(
        self,
        backbone: Backbone,
        *,
        alpha: Share = 0.1,
        prior: Whole | None = None,
        **learning: Learning,
    ) -> None:
        super().__init__(backbone, **learning)
        self.alpha, self.prior = alpha, prior

    def build(self, source: Experience | None) -> None:
        convert(self.model, lambda norm: MixedNorm(norm, self.alpha))

    def outputs(self, x: Tensor) -> Tensor:
        if self.prior is not None:
            for layer in self.model.modules():
                if isinstance(layer, MixedNorm):
                    layer.alpha = len(x) / (self.prior + len(x))
        return self.model(x)


class BNEMA(TestTimeMethod):
    """Moves the running statistics by every batch, then answers with them: two forward passes.

    Schneider et al., NeurIPS 2020, as ``bnema`` of mariodoebler/test-time-adaptation.

    Args:
        momentum: weight of the batch in the running statistics.
    """

    paper: ClassVar[str] = "Schneider et al., NeurIPS 2020"
    name: ClassVar[str] = "bn_ema"

    def __init__(
        self,
        backbone: Backbone,
        *,
        momentum: Share = 0.1,
        **learning: Learning,
    ) -> None:
        super().__init__(backbone, **learning)
        self.momentum = momentum

    @torch.no_grad()
    def adapt(self, x: Tensor) -> Tensor:
        layers = [m for m in self.model.modules() if isinstance(m, _BatchNorm)]
        for layer in layers:
            layer.momentum = self.momentum
            layer.train()
        self.model(x)
        for layer in layers:
            layer.eval()
        return self.model(x)



"""A test-time method of your own in one file: `cl-bench check examples/my_tta.py:ConfidentEntropy`, then
`cl-bench run --scenario digits_c --method examples/my_tta.py:ConfidentEntropy --method.threshold 0.8`.

The idea: entropy minimisation (TENT) on the images alone of which the model is already sure.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from cl_bench import Backbone, Experience
from cl_bench.adaptation import TestTimeMethod, batch_statistics, entropy, norm_parameters

__all__ = ["ConfidentEntropy"]


class ConfidentEntropy(TestTimeMethod):
    """Minimises the entropy of confident predictions over the norm layers' affine parameters, one step per batch.

    Args:
        threshold: largest softmax probability from which an image counts, in [0, 1].
    """

    paper: ClassVar[str] = "none: an example to start from"

    def __init__(self, backbone: Backbone, *, lr: float = 1e-3, threshold: float = 0.8) -> None:
        super().__init__(backbone, lr=lr)
        self.threshold = threshold

    def build(self, source: Experience | None) -> None:
        """Before the stream: what adapts, and by which optimizer. `source` is None unless `needs` asks for it."""
        batch_statistics(self.model)
        self.optimise(norm_parameters(self.model))

    def adapt(self, x: Tensor) -> Tensor:
        """One batch (N, 3, H, W) in [0, 1]: answer, then learn from it. No labels are to be had here."""
        z = self.model(x)
        sure = z.detach().softmax(1).amax(1) >= self.threshold
        if sure.any():
            self.step(entropy(z)[sure].mean())
        return z

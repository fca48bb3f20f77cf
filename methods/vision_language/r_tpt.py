"""R-TPT: prompt tuning by each view's own entropy, answered by an ensemble of reliable views."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from cl_bench import Backbone
from cl_bench.ranges import Amount, Count, Positive, Share, Size, Text

from ._views import entropies
from .tpt import Tpt

__all__ = ["RTpt"]


class RTpt(Tpt):
    """A step on the mean of the confident views' entropies; the answer is the mean logit, weighted by how many views agree.

    Sheng et al., "R-TPT: Improving Adversarial Robustness of Vision-Language Models through Test-Time Prompt Tuning", CVPR
    2025 (TomSheng21/R-TPT). A view's reliability is the mean of its largest similarities to other views. The released code
    leaves itself out by ``similarity >= 1``, which rounding decides; here it is left out.

    Args:
        neighbours: similarities that are averaged.
        temperature: of the weights.
        steps: of the optimizer, for each image.
    """

    family: ClassVar[str] = "test-time"
    paper: ClassVar[str] = "Sheng et al. (R-TPT), CVPR 2025"
    exempt: ClassVar[dict[str, str]] = {
        "is not worse than its source under shift": "published crops, down to 8 % and half of them mirrored, show no digit; "
        "with crops of half the image and no mirror it is not worse"
    }

    def __init__(self, backbone: Backbone, *, lr: Amount = 5e-3, views: Size = 64, steps: Count = 1, share: Share = 0.1,
                 context: Text = "a photo of a", neighbours: Size = 20, temperature: Positive = 0.01, area: Share = 0.08,
                 flip: bool = True, augmix: bool = False) -> None:  # fmt: skip
        super().__init__(backbone, lr=lr, views=views, steps=steps, share=share, context=context, area=area, flip=flip,
                         augmix=augmix)  # fmt: skip
        self.neighbours, self.temperature = neighbours, temperature

    def objective(self, logits: Tensor, text: Tensor) -> Tensor:
        return entropies(logits).mean()

    def answer_of(self, f: Tensor, logits: Tensor) -> Tensor:
        return reliability(f, self.neighbours, self.temperature) @ logits


def reliability(f: Tensor, neighbours: int, temperature: float) -> Tensor:
    """Weights (V,) of views (V, d), of sum 1."""
    if len(f) == 1:
        return f.new_ones(1)
    alike = (f @ f.T).masked_fill(torch.eye(len(f), dtype=torch.bool, device=f.device), -torch.inf)
    return (alike.topk(min(neighbours, len(f) - 1), 1).values.mean(1) / temperature).softmax(0)

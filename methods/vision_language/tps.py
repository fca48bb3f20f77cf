"""TPS: a shift of every class prototype, learned per image in feature space."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench import Backbone
from cl_bench.ranges import Amount, Count, Share, Size

from ._views import Views, confident, entropies, marginal_entropy

__all__ = ["Tps"]


class Tps(Views):
    """Adds a vector to each class text and takes a step on the entropy of the confident views' mean answer.

    Sui et al., "Just Shift It: Test-Time Prototype Shifting for Zero-Shot Generalization with Vision-Language Models", WACV
    2025 (elaine-sui/TPS). The text tower does not run; AdamW with weight decay 0.01; shift and optimizer start anew with
    every image, which is answered itself with the shifted prototypes. Episodic.

    Args:
        lr: 5e-3 (ImageNet's family); 1e-3 on fine-grained sets in the benchmark TTA-VLM.
        steps: of the optimizer per image.
        share: of the views that are kept, chosen anew at each step.
        shift: a vector for each class, or one for all.
    """

    family: ClassVar[str] = "test-time"
    paper: ClassVar[str] = "Sui et al. (TPS), WACV 2025"

    def __init__(self, backbone: Backbone, *, lr: Amount = 5e-3, views: Size = 64, steps: Count = 1, share: Share = 0.1,
                 shift: Literal["class", "shared"] = "class", area: Share = 0.08, flip: bool = True,
                 augmix: bool = False) -> None:  # fmt: skip
        super().__init__(backbone, views=views, area=area, flip=flip, augmix=augmix, lr=lr)
        self.steps, self.share, self.shift = steps, share, shift

    def score(self, f: Tensor, text: Tensor) -> Tensor:
        self.counts["steps"] += self.steps
        moved, _ = shifted(f, text, float(self.scale), self.lr, self.steps, self.share, self.shift == "shared")
        return self.scale * f[0] @ F.normalize(text + moved, dim=-1).T


def shifted(f: Tensor, text: Tensor, scale: float, lr: float, steps: int, share: float, shared: bool = False
            ) -> tuple[Tensor, list[float]]:  # fmt: skip
    """The shift (C, d), or (d,), learned on views ``f`` (V, d), and the loss before each step."""
    with torch.enable_grad():
        moved = torch.zeros_like(text[0] if shared else text).requires_grad_()
        optimizer = torch.optim.AdamW([moved], lr=lr, weight_decay=0.01)
        losses = []
        for _ in range(steps):
            logits = scale * f @ F.normalize(text + moved, dim=-1).T
            loss = marginal_entropy(logits[confident(entropies(logits.detach()), share)])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return moved.detach(), losses

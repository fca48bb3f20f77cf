"""STS: class texts are steered together inside their own principal subspace."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench import Backbone
from cl_bench.ranges import Amount, Count, Share, Size

from ._views import Views, confident, entropies, marginal_entropy

__all__ = ["Sts"]


class Sts(Views):
    """One vector of few coordinates, shared by all classes, is learned per image; no encoder weight is touched.

    Dafnis and Metaxas, "Test-Time Spectrum-Aware Latent Steering for Zero-Shot Generalization in Vision-Language Models",
    NeurIPS 2025. The coordinates are the right singular vectors of the class texts above the threshold of Gavish and Donoho
    for unknown noise (``omega(b) = 0.56 b^3 - 0.95 b^2 + 1.82 b + 1.43`` times the median singular value), the first at
    least. The answer is the mean probability of the confident views with the steered texts. Episodic.

    From the paper alone, without the authors' code: texts are not centred, and the penalty is on the length itself, whose
    gradient at the start is 0; so with one step its weight changes nothing.

    Args:
        lr, steps: AdamW (decay 0.01) per image, from 0.
        penalty: weight of the shift's length.
        share: of the views that are kept.
    """

    family: ClassVar[str] = "test-time"
    paper: ClassVar[str] = "Dafnis & Metaxas (STS), NeurIPS 2025"
    output = "probs"
    exempt: ClassVar[dict[str, str]] = {
        "is not worse than its source under shift": "published crops, down to 8 % and half of them mirrored, show no digit; "
        "with crops of half the image and no mirror it is not worse",
    }

    def __init__(self, backbone: Backbone, *, lr: Amount = 5e-3, views: Size = 64, steps: Count = 1, penalty: Amount = 0.1,
                 share: Share = 0.1, area: Share = 0.08, flip: bool = True) -> None:  # fmt: skip
        super().__init__(backbone, views=views, area=area, flip=flip, lr=lr)
        self.steps, self.penalty, self.share = steps, penalty, share

    def restart_memory(self) -> None:
        self.basis: Tensor | None = None

    def score(self, f: Tensor, text: Tensor) -> Tensor:
        if self.basis is None:
            self.basis = principal(text)
        self.counts["steps"] += self.steps
        return steered(f, text, self.basis.to(text), float(self.scale), self.lr, self.steps, self.share, self.penalty)


def principal(text: Tensor) -> Tensor:
    """Right singular vectors (d, k) of unit texts (C, d) above the optimal hard threshold; one at least."""
    _, s, v = torch.linalg.svd(text, full_matrices=False)
    ratio = min(text.shape) / max(text.shape)
    omega = 0.56 * ratio**3 - 0.95 * ratio**2 + 1.82 * ratio + 1.43
    return v[: max(1, int((s > omega * s.median()).sum()))].T


def steered(
    f: Tensor, text: Tensor, basis: Tensor, scale: float, lr: float, steps: int, share: float, penalty: float
) -> Tensor:
    """Mean probability (C,) of the confident views (V, d) after the steps."""
    kept = f[confident(entropies(scale * f @ text.T), share)]
    with torch.enable_grad():
        gamma = text.new_zeros(basis.shape[1]).requires_grad_()
        optimizer = torch.optim.AdamW([gamma], lr=lr, weight_decay=0.01)
        for _ in range(steps):
            shift = basis @ gamma
            length = shift.norm()  # its gradient at 0 is taken as 0
            loss = marginal_entropy(scale * kept @ F.normalize(text + shift, dim=-1).T) + penalty * length
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return (scale * kept @ F.normalize(text + basis @ gamma.detach(), dim=-1).T).softmax(1).mean(0)

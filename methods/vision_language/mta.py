"""MTA: the mode of the views' features, found by a mean shift with learned inlierness."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench import Backbone
from cl_bench.ranges import Amount, Positive, Share, Size

from ._views import Views

__all__ = ["Mta"]

ROUNDS, INNER, STOP = 5, 5, 1e-6


class Mta(Views):
    """Density mode of the views, weighted by inlierness scores that agree with the views' predictions; no training.

    Zanella and Ben Ayed, "On the test-time zero-shot generalization of vision-language models: Do we really need prompt
    learning?", CVPR 2024 (MaxZanella/MTA). Five rounds of at most five steps each on the scores and on the mode, which
    starts at the image itself. Episodic. Equal views, whose bandwidth is 0, get 1e-12 in its place.

    Args:
        lambda_y, lambda_q: weights of the scores' entropy and of their agreement.
        neighbours: share of the nearest views that sets a view's bandwidth.
    """

    family: ClassVar[str] = "test-time"
    paper: ClassVar[str] = "Zanella & Ben Ayed (MTA), CVPR 2024"
    exempt: ClassVar[dict[str, str]] = {
        "is not worse than its source under shift": "published crops, down to 8 % and half of them mirrored, show no digit; "
        "with crops of half the image and no mirror it is not worse"
    }

    def __init__(self, backbone: Backbone, *, views: Size = 64, lambda_y: Positive = 0.2, lambda_q: Amount = 4.0,
                 neighbours: Share = 0.3, area: Share = 0.08, flip: bool = True) -> None:  # fmt: skip
        super().__init__(backbone, views=views, area=area, flip=flip)
        self.lambda_y, self.lambda_q, self.neighbours = lambda_y, lambda_q, neighbours

    def score(self, f: Tensor, text: Tensor) -> Tensor:
        if len(f) < 2:
            return self.scale * f[0] @ text.T
        return self.scale * shift(f, text, float(self.scale), self.lambda_y, self.lambda_q, self.neighbours).mode @ text.T


class Shifted(NamedTuple):
    """mode (d,), inlierness (V,), bandwidth (V,)."""

    mode: Tensor
    inlierness: Tensor
    bandwidth: Tensor


def shift(f: Tensor, text: Tensor, scale: float, lambda_y: float, lambda_q: float, neighbours: float = 0.3) -> Shifted:
    """The mode of unit features ``f`` (V, d) with texts (C, d)."""
    distance = torch.cdist(f, f, compute_mode="donot_use_mm_for_euclid_dist")
    near = max(1, int(neighbours * (len(f) - 1)))
    reach = distance.sort(1).values[:, 1 : near + 1].square().mean(1).clamp_min(1e-12)  # twice the bandwidth squared
    p = (scale * f @ text.T).softmax(1)
    affinity = p @ p.T
    y, mode = f.new_full((len(f),), 1 / len(f)), f[0]
    for _ in range(ROUNDS):
        density = torch.exp(-(f - mode).square().sum(1) / reach)
        for _ in range(INNER):
            new = ((density + lambda_q * affinity @ y) / lambda_y).softmax(0)
            moved, y = (new - y).norm(), new
            if moved < STOP:
                break
        for _ in range(INNER):
            weight = torch.exp(-(f - mode).square().sum(1) / reach) * y
            new = F.normalize((weight[:, None] * f).sum(0) / weight.sum(), dim=0)
            moved, mode = (new - mode).norm(), new
            if moved < STOP:
                break
    return Shifted(mode, y, (reach / 2).sqrt())

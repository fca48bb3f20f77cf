"""An attention that gathers the patches of an image that matter and adds them to its feature."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn


class Salience(nn.Module):
    """``f + V sum_j a_j p_j`` with ``a = softmax_j(Q f . K p_j / sqrt(h))``: to an image feature is added what a map makes of
    the mean of its patches, each as salient as a query of the feature finds it; V starts at 0.

    Args:
        width: length of a feature.
        inner: h, length of queries and keys.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.query, self.key = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.value = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.value.weight)

    def weights(self, f: Tensor, patches: Tensor) -> Tensor:
        """How salient (N, L) patches (N, L, d) are for features (N, d), both of unit length; rows sum to 1."""
        near = self.key(patches) @ self.query(f)[..., None]
        return (near[..., 0] / math.sqrt(self.key.out_features)).softmax(1)

    def forward(self, f: Tensor, patches: Tensor) -> Tensor:
        """Features (N, d) and those of patches (N, L, d) -> unit features (N, d)."""
        f, patches = F.normalize(f, dim=-1), F.normalize(patches, dim=-1)
        gathered = (self.weights(f, patches)[:, None] @ patches)[:, 0]
        return F.normalize(f + self.value(gathered), dim=-1)

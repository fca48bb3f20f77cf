"""RanPAC (McDonnell et al., NeurIPS 2023, arXiv 2307.02251, github.com/RanPAC/RanPAC): random features and an exactly
accumulated ridge regression."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from cl_bench import Backbone, Experience
from cl_bench.heads import Head
from cl_bench.ranges import Amount, Count, Size, Whole

from ._first_session import FirstSession

__all__ = ["RanPAC"]


class RanPAC(FirstSession):
    """``h = relu(f W)`` with W ~ N(0, 1) fixed; the head is the ridge regression of one-hot labels on all h seen.

    The first experience tunes ``pet`` as APER does. Then G = sum h h^T and Q = sum h y^T are accumulated, and the head is
    ``(G + ridge I)^-1 Q``: what one regression on all data would give. The ridge is chosen anew per experience among
    10^-8 ... 10^8 by the mean squared error on a held-out fifth of the experience's features, with statistics of the
    other four fifths alone.

    G and Q are kept as a square root, ``G = R^T R`` and ``Q = R^T Z`` with R (k, m) from QR, k at most the number of
    images seen and never more than m: the same numbers without an m x m matrix where images are few, and better
    conditioned. All in float64.

    Args:
        m: number of random features (published: 10,000). Keep it away from the number of images: where they meet, the
            regression is worst conditioned, and a ridge chosen on the new classes alone can be far too small for all.
        pet: what the first experience tunes; ``none`` leaves the backbone alone.
    """

    family: ClassVar[str] = "prototype"
    paper: ClassVar[str] = "McDonnell et al., RanPAC, NeurIPS 2023"
    project: Tensor
    root: Tensor
    target: Tensor
    weight: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 0.01,
        epochs: Whole = 20,
        batch_size: Count = 48,
        m: Size = 10_000,
        pet: Literal["adapter", "ssf", "vpt_shallow", "vpt_deep", "finetune", "none"] = "adapter",
        weight_decay: Amount = 5e-4,
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size, pet=pet, weight_decay=weight_decay)
        self.m = m
        self.frozen = None  # only APER looks at the untouched copy
        self.ridge = 0.0
        self.register_buffer("project", torch.randn(backbone.num_features, m))
        self.register_buffer("root", torch.zeros(0, m, dtype=torch.float64))
        self.register_buffer("target", torch.zeros(0, 0, dtype=torch.float64))
        self.register_buffer("weight", torch.zeros(m, 0, dtype=torch.float64))

    def make_head(self) -> Head:
        return Head(self.backbone.num_features)  # keeps the label space; the answers come from the regression

    def expand(self, features: Tensor) -> Tensor:
        """Features (N, d) to random features (N, m)."""
        return torch.relu(features @ self.project)

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(self.backbone.forward_features(x)) @ self.weight.to(x.dtype)

    @torch.no_grad()
    def end(self, exp: Experience) -> None:
        super().end(exp)
        self.eval()
        features, labels = self.embed(exp)
        h = self.expand(features).double()
        y = torch.nn.functional.one_hot(self.head.columns(labels), len(self.head.space)).double()
        old = torch.cat([self.target, self.target.new_zeros(len(self.target), y.shape[1] - self.target.shape[1])], 1)
        q, self.root = torch.linalg.qr(torch.cat([self.root, h]))
        self.target = q.T @ torch.cat([old, y])
        order = torch.randperm(len(h), generator=self.rng.on("cpu")).to(h.device)
        cut = int(0.8 * len(h))
        self.ridge = choose(h[order[:cut]], y[order[:cut]], h[order[cut:]], y[order[cut:]])
        self.weight = ridge(self.root, self.target, self.ridge)


def ridge(root: Tensor, target: Tensor, strength: float) -> Tensor:
    """``(R^T R + strength I)^-1 R^T Z`` (m, classes), as ``R^T (R R^T + strength I)^-1 Z``."""
    eye = torch.eye(len(root), dtype=root.dtype, device=root.device)
    return root.T @ torch.linalg.solve(root @ root.T + strength * eye, target)


def choose(h: Tensor, y: Tensor, held_h: Tensor, held_y: Tensor) -> float:
    """The ridge of 10^-8 ... 10^8 with the smallest squared error on the held-out rows.

    All 17 solutions come from one singular value decomposition of h.
    """
    if not len(h) or not len(held_h):
        return 1.0
    u, s, v = torch.linalg.svd(h, full_matrices=False)
    uy, hv = u.T @ y, held_h @ v.T
    errors = {}
    for power in range(-8, 9):
        weight = (s / (s.square() + 10.0**power)).unsqueeze(1) * uy
        errors[10.0**power] = float((hv @ weight - held_y).square().mean())
    return min(errors, key=errors.__getitem__)

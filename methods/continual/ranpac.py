"""RanPAC (McDonnell et al., NeurIPS 2023, arXiv 2307.02251, github.com/RanPAC/RanPAC): random features and an exactly
accumulated ridge regression."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from cl_bench import Backbone, Experience
from cl_bench.heads import Head, full_precision
from cl_bench.ranges import Amount, Count, Size, Whole

from .._differs import Differs
from ._first_session import FirstSession

__all__ = ["RanPAC"]


class RanPAC(FirstSession):
    """``h = relu(f W)`` with W ~ N(0, 1) fixed; the head is the ridge regression of one-hot labels on all h seen.

    The first experience tunes ``pet`` as APER does. Then G = sum h h^T and Q = sum h y^T are accumulated, and the head is
    ``(G + ridge I)^-1 Q``: what one regression on all data would give. The ridge is chosen anew per experience among
    10^-8 ... 10^8 by the mean squared error on a held-out fifth of the experience's features, with statistics of the
    other four fifths alone. As released, that choice is made in float32, where tiny ridges are numerically singular and lose:
    it is a matter of the precision as much as of the data.

    G and Q are kept as a square root, ``G = R^T R`` and ``Q = R^T Z`` with R (k, m) from QR, k at most the number of
    images seen and never more than m: the same numbers without an m x m matrix where images are few, and better
    conditioned. All but the choice in float64. Phase one: SGD with momentum 0.9 and decay 5e-4, its cosine stepped per epoch.

    Args:
        m: number of random features (published: 10,000). Keep it away from the number of images: where they meet, the
            regression is worst conditioned, and a ridge chosen on the new classes alone can be far too small for all.
        pet: what the first experience tunes; ``none`` leaves the backbone alone.
        selection: ``float32`` as released, by 17 solutions of an m x m system up to m = 2,000; beyond, where that takes
            minutes, by what it amounts to: the best ridge that float32 can tell from none, at least 6e-8 of the largest
            eigenvalue. ``float64`` has them all, and can choose a smaller one on data without noise.
    """

    family: ClassVar[str] = "prototype"
    paper: ClassVar[str] = "McDonnell et al., RanPAC, NeurIPS 2023"
    shares_batches: ClassVar[bool] = True
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("The ridge is chosen in float32, where tiny ridges are singular and lose; the paper does not "
                "speak of precision.",
                "RanPAC/RanPAC@012927f8 RanPAC.py:138", table="released code",
                here=({"selection": "float32"}, {"selection": "float64"}), both={"m": 1000}),
    )
    exempt = {"state that grows with the images is declared": "the square root of G has a row per image, at most m"}
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
        selection: Literal["float32", "float64"] = "float32",
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size, pet=pet, weight_decay=weight_decay)
        self.m, self.selection = m, selection
        self.frozen = None  # only APER looks at the untouched copy
        self.ridge = 0.0
        self.register_buffer("project", torch.randn(backbone.num_features, m))
        self.register_buffer("root", torch.zeros(0, m, dtype=torch.float64))
        self.register_buffer("target", torch.zeros(0, 0, dtype=torch.float64))
        self.register_buffer("weight", torch.zeros(m, 0, dtype=torch.float64))

    def make_head(self) -> Head:
        return Head(self.backbone.num_features)  # keeps the label space; the answers come from the regression

    def expand(self, features: Tensor) -> Tensor:
        """Features (N, d) to random features (N, m), never in half precision: a regression's large weights of either sign
        leave little of a sum whose parts were rounded."""
        with full_precision(features, self.project) as (f, project):
            return torch.relu(f @ project)

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(self.expand(self.backbone.forward_features(x))) as (h,):
            return h @ self.weight.to(h.dtype)

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
        parts = h[order[:cut]], y[order[:cut]], h[order[cut:]], y[order[cut:]]
        single = self.selection == "float32"
        released = single and self.m <= 2_000
        self.ridge = best(losses_as_released(*(p.float() for p in parts)) if released else losses_exact(*parts, single))
        self.weight = ridge(self.root, self.target, self.ridge)


def ridge(root: Tensor, target: Tensor, strength: float) -> Tensor:
    """``(R^T R + strength I)^-1 R^T Z`` (m, classes), as ``R^T (R R^T + strength I)^-1 Z``."""
    eye = torch.eye(len(root), dtype=root.dtype, device=root.device)
    return root.T @ torch.linalg.solve(root @ root.T + strength * eye, target)


RIDGES = [10.0**power for power in range(-8, 9)]


def best(losses: list[float]) -> float:
    """The ridge of the smallest loss, the first of equals; 1 where nothing was held out."""
    return RIDGES[min(range(len(losses)), key=losses.__getitem__)] if losses else 1.0


def losses_as_released(h: Tensor, y: Tensor, held_h: Tensor, held_y: Tensor) -> list[float]:
    """Mean squared error on the held-out rows for each ridge, by solving ``(h^T h + ridge I) W = h^T y`` in the features' own
    precision (RanPAC.py, optimise_ridge_parameter)."""
    if not len(h) or not len(held_h):
        return []
    gram, q, eye = h.T @ h, h.T @ y, torch.eye(h.shape[1], dtype=h.dtype, device=h.device)
    return [float((held_h @ torch.linalg.solve(gram + r * eye, q) - held_y).square().mean()) for r in RIDGES]


def losses_exact(h: Tensor, y: Tensor, held_h: Tensor, held_y: Tensor, single: bool = False) -> list[float]:
    """The same to rounding, from one singular value decomposition of h; ``single``: infinite for ridges that float32 cannot
    tell from none."""
    if not len(h) or not len(held_h):
        return []
    u, s, v = torch.linalg.svd(h, full_matrices=False)
    uy, hv = u.T @ y, held_h @ v.T
    least = torch.finfo(torch.float32).eps / 2 * float(s[0]) ** 2 if single else 0.0
    return [float((hv @ ((s / (s.square() + r)).unsqueeze(1) * uy) - held_y).square().mean()) if r >= least else math.inf
            for r in RIDGES]

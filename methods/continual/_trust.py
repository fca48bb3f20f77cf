"""TRGP's trust regions (Lin et al., ICLR 2022), which CUBER builds on: how related an old task is, and scaled weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

WEAK, CONFLICT, TRANSFER = 1, 2, 3  # the paper's regimes, per layer and old task


def projected_norm(g: Tensor, space: Tensor) -> Tensor:
    """|g S S^T| of a gradient (out, d_in) on the space with orthonormal columns S (d_in, k)."""
    return (g.to(space.dtype) @ space @ space.T).norm()


def agree(old: Tensor, new: Tensor, epsilon: float) -> bool:
    """<g_j, g> > epsilon |g_j| |g|."""
    return bool((old * new).sum() > epsilon * old.norm() * new.norm())


def regime_of(inside: float, whole: float, epsilon: float, agrees: bool) -> int:
    """WEAK where the projected norm is at most ``epsilon`` of the whole; else TRANSFER where the gradients agree."""
    if inside <= epsilon * whole:
        return WEAK
    return TRANSFER if agrees else CONFLICT


def scaled_weight(weight: Tensor, parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """w + sum_j w S_j (Q_j - I) S_j^T for (S_j (d_in, k), Q_j (k, k)); w (out, d_in)."""
    change = torch.zeros_like(weight)
    for space, q in parts:
        change = change + (weight @ space) @ (q - torch.eye(len(q), dtype=q.dtype, device=q.device)) @ space.T
    return weight + change


def slope(drift: Tensor, space: Tensor) -> Tensor:
    """The gradient of |Proj_S drift| (out, d_in): a unit vector back to the old weights; 0 where there is no drift."""
    inside = drift @ space.to(drift.dtype)
    return inside @ space.T.to(drift.dtype) / (inside.square().sum() + 1e-12).sqrt()

"""DualGPM (Liang & Li, CVPR 2023), as InfLoRA's code runs it (methods/inflora.py, update_DualGPM)."""

from __future__ import annotations

import torch
from torch import Tensor


def unused(c: Tensor, basis: Tensor | None, complement: bool) -> Tensor:
    """The second moment C (d, d) without what old tasks use: ``basis`` (d, k) spans that, or its ``complement``."""
    if basis is None:
        return c
    inside = basis @ (basis.T @ c)
    return inside if complement else c - inside


def start(c: Tensor, basis: Tensor | None, complement: bool, r: int) -> Tensor:
    """A (r, d) of the next task: the top left singular vectors of what is unused, over sqrt(3)."""
    return torch.linalg.svd(unused(c, basis, complement))[0][:, :r].T / 3**0.5


def share_of(lamda: float, task: int, tasks: int) -> float:
    """The share of the energy that counts as used after ``task`` (from 0) of ``tasks``."""
    return (1.0 - lamda) * task / tasks + lamda


def remember(c: Tensor, basis: Tensor | None, complement: bool, share: float, released: bool = True) -> tuple[Tensor, bool]:
    """The space after a task with second moment C: (basis, whether it is the complement of the used one).

    Energies are squared singular values of C, which is second order already. The first basis has as many columns as have a
    cumulative energy strictly below ``share``, at least one (not ``released``: one more, the fewest that hold it); later ones
    grow until they hold it. A basis of more than d / 2 columns is replaced by its complement, which shrinks from then on, to
    nothing if need be. As released, a first basis of exactly d / 2 columns is taken for a complement as it is; with more,
    where that code stops, its complement is taken.
    """
    d = len(c)
    total = torch.linalg.svdvals(c).square().sum()
    u, s, _ = torch.linalg.svd(unused(c, basis, complement))
    energy = s.square() / total
    if basis is None:
        basis = u[:, : max(1, int((energy.cumsum(0) < share).sum()) + (not released))]
        if released and 2 * basis.shape[1] == d:
            return basis, True
    elif complement:
        left, n = float(energy.sum()), 0
        for e in energy.tolist():
            if left < 1 - share:
                break
            left, n = left - e, n + 1
        if n:
            rest = basis - u[:, :n] @ (u[:, :n].T @ basis)
            basis = torch.linalg.svd(rest)[0][:, : max(0, basis.shape[1] - n)]
    else:
        held, n = float((total - s.square().sum()) / total), 0
        for e in energy.tolist():
            if held >= share:
                break
            held, n = held + e, n + 1
        if n:
            basis = torch.cat([basis, u[:, :n]], 1)[:, :d]
    if not complement and 2 * basis.shape[1] > d:
        return torch.linalg.svd(basis)[0][:, basis.shape[1] :], True
    return basis, complement

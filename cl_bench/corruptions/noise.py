"""Noise added pixel by pixel and channel by channel (Hendrycks and Dietterich 2019)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .tools import Draws

__all__ = ["gaussian_noise", "impulse_noise", "shot_noise", "speckle_noise"]


def gaussian_noise(x: Tensor, scale: float, draws: Draws) -> Tensor:
    """Normal noise of standard deviation ``scale`` (share of the full range)."""
    return draws.normal(tuple(x.shape)).mul_(255.0 * scale).add_(x)


def speckle_noise(x: Tensor, scale: float, draws: Draws) -> Tensor:
    """Normal noise in proportion to the pixel."""
    return draws.normal(tuple(x.shape)).mul_(scale).add_(1.0).mul_(x)


def impulse_noise(x: Tensor, amount: float, draws: Draws) -> Tensor:
    """A share ``amount`` of all values becomes 0 or 255, each half of the time.

    One uniform number decides both whether and which way (the original draws two); the distribution is the same.
    """
    chance = draws.uniform(tuple(x.shape))
    return x.masked_fill(chance < 0.5 * amount, 255.0).masked_fill_(chance >= 1.0 - 0.5 * amount, 0.0)


@lru_cache(maxsize=8)
def _poisson_table(photons: int) -> Tensor:
    """Alias table (Walker 1977) of Poisson(photons * level / 255) for the 256 levels: ``(256, K)`` float32.

    Column j of a row holds ``alias + p``: a number in column j means j with probability p, else ``alias``. ``K`` reaches
    ten standard deviations past the largest mean.
    """
    size = int(photons + 10.0 * photons**0.5 + 10.0)
    counts = torch.arange(size, dtype=torch.float64)
    rates = (torch.arange(256, dtype=torch.float64) * (photons / 255.0))[:, None]
    chances = torch.exp(torch.xlogy(counts, rates) - rates - torch.lgamma(counts + 1.0))
    chances /= chances.sum(1, keepdim=True)
    table = torch.empty(256, size)
    for level, row in enumerate(chances.mul(size).tolist()):
        alias = list(range(size))
        keep = [0.0] * size  # a full cell may be marked by alias = itself and p = 0
        small = [j for j, p in enumerate(row) if p < 1.0]
        large = [j for j, p in enumerate(row) if p >= 1.0]
        while small and large:
            poor, rich = small.pop(), large[-1]
            alias[poor], keep[poor] = rich, row[poor]
            row[rich] -= 1.0 - row[poor]
            if row[rich] < 1.0:
                small.append(large.pop())
        table[level] = torch.tensor(alias, dtype=torch.float32) + torch.tensor(keep).clamp_(max=0.999)
    return table


def shot_noise(x: Tensor, photons: int, draws: Draws) -> Tensor:
    """Every value is a Poisson count of mean ``photons`` at full brightness, scaled back.

    Drawn from a table per grey level: ``torch.poisson`` costs several times as much on a CPU.
    """
    table = _poisson_table(photons).to(x.device)
    size = table.shape[1]
    spot = draws.uniform(tuple(x.shape)).mul_(size)
    cell = spot.floor().clamp_(max=size - 1)
    spot -= cell
    entry = table.take((x * size + cell).int().long())
    alias = entry.floor()
    return torch.where(spot < entry - alias, cell, alias).mul_(255.0 / photons)

"""Blurs (Hendrycks and Dietterich 2019)."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import cl_bench_ops
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .tools import Draws, blur, floor_steps, streak, zoom_matrix

__all__ = ["defocus_blur", "gaussian_blur", "glass_blur", "motion_blur", "zoom_blur"]


def gaussian_blur(x: Tensor, sigma: float, draws: Draws) -> Tensor:
    """Gaussian blur; nothing random."""
    return blur(x, sigma)


@lru_cache(maxsize=16)
def _disk(radius: float, softness: float) -> Tensor:
    """A filled circle, softened by a small Gaussian and cut to the square that holds it: ``(k, k)``, sum 1."""
    reach = max(8, int(radius))
    line = torch.arange(-reach, reach + 1, dtype=torch.float64)
    disk = (line[:, None] ** 2 + line[None, :] ** 2 <= radius**2).double()
    disk /= disk.sum()
    taps = torch.arange(-1, 2) if radius <= 8 else torch.arange(-2, 3)
    weights = torch.exp(-0.5 * (taps.double() / softness) ** 2)
    weights /= weights.sum()
    # The softened rim of the widest disks leaves the array, whose border mirrors it back in.
    edge = len(taps) // 2
    disk = F.pad(disk[None, None], (edge,) * 4, mode="reflect")
    disk = F.conv2d(disk, weights[:, None].mul(weights)[None, None])[0, 0]
    half = int((disk.amax(0) > 1e-9).sum()) // 2
    return disk[reach - half : reach + half + 1, reach - half : reach + half + 1].float()


def _mirrored(x: Tensor, edge: int) -> Tensor:
    """Borders mirrored about the edge pixel, also where the picture is smaller than the border."""
    while edge > 0:
        step = min(edge, min(x.shape[-2:]) - 1)
        x = F.pad(x, (step,) * 4, mode="reflect")
        edge -= step
    return x


def defocus_blur(x: Tensor, setting: tuple[float, float], draws: Draws) -> Tensor:
    """Every point spreads to a disk; setting = (radius, softness of its rim), pixels; nothing random."""
    kernel = _disk(*setting)
    size = kernel.shape[0]
    padded = _mirrored(x, size // 2)
    height, width = x.shape[-2:]
    if size <= 5:  # few taps: shifted additions beat a convolution of one channel
        total = torch.zeros_like(x)
        for dy in range(size):
            for dx in range(size):
                total.add_(padded[..., dy : dy + height, dx : dx + width], alpha=float(kernel[dy, dx]))
        return total
    flat = padded.reshape(-1, 1, *padded.shape[-2:])
    return F.conv2d(flat, kernel.to(x.device)[None, None]).reshape(x.shape)


def glass_blur(x: Tensor, setting: tuple[float, int, int], draws: Draws) -> Tensor:
    """Blur, shuffle pixels within ``delta``, blur; setting = (sigma, delta, passes)."""
    sigma, delta, passes = setting
    count, channels, height, width = x.shape
    inner = (max(height - 2 * delta, 0), max(width - 2 * delta, 0))
    right, down = draws.steps((count, passes, *inner), delta)
    origin = cl_bench_ops.glass_origin(right, down, height, width, delta)
    x = floor_steps(blur(x, sigma)).flatten(2).gather(2, origin[:, None, :].expand(-1, channels, -1))
    return blur(x.unflatten(2, (height, width)), sigma)


def motion_blur(x: Tensor, setting: tuple[float, float], draws: Draws) -> Tensor:
    """Streaks in a direction within 45 degrees of level; setting = (radius, sigma)."""
    return streak(x, draws.uniform((len(x),), -45.0, 45.0), *setting)


_Zooms = list[tuple[int, Tensor, Tensor]]


@lru_cache(maxsize=32)
def _zooms(height: int, width: int, stop: float, step: float) -> _Zooms:
    """The distinct zooms of the range and how often each occurs: nearby factors round to the same stretch."""
    seen: Counter[float] = Counter()
    kinds: dict[bytes, float] = {}
    for factor in np.arange(1.0, stop, step).tolist():
        rows, columns = zoom_matrix(height, factor), zoom_matrix(width, factor)
        seen[kinds.setdefault(rows.numpy().tobytes() + columns.numpy().tobytes(), factor)] += 1
    return [(count, zoom_matrix(height, factor), zoom_matrix(width, factor)) for factor, count in seen.items()]


@lru_cache(maxsize=8)
def _zoom_bands(height: int, width: int, stop: float, step: float) -> list[tuple[slice, slice, Tensor]]:
    """The whole corruption as a few matrices: bands of output pixels, the input pixels each needs, the matrix."""
    zooms = _zooms(height, width, stop, step)
    total = torch.eye(height * width)
    for count, rows, columns in zooms:
        total += count * torch.kron(rows, columns)
    total /= 1 + sum(count for count, _, _ in zooms)
    bands = []
    for wanted in torch.arange(height * width).split(8 * width):
        needed = total[wanted].amax(0).nonzero()
        inputs = slice(int(needed.min()), int(needed.max()) + 1)
        outputs = slice(int(wanted[0]), int(wanted[-1]) + 1)
        bands.append((inputs, outputs, total[outputs, inputs].T.contiguous()))
    return bands


def zoom_blur(x: Tensor, setting: tuple[float, float], draws: Draws) -> Tensor:
    """Mean of the picture and its enlargements 1, 1 + step, ..., stop; setting = (stop, step); nothing random."""
    height, width = x.shape[-2:]
    if height * width <= 1024:  # small enough for ready-made matrices (2 MiB), four times as fast
        flat = x.reshape(-1, height * width)
        result = torch.empty_like(flat)
        for inputs, outputs, matrix in _zoom_bands(height, width, *setting):
            result[:, outputs] = flat[:, inputs] @ matrix.to(x.device)
        return result.view_as(x)
    zooms = _zooms(height, width, *setting)
    total = x.clone()
    for count, rows, columns in zooms:
        total += (count * rows).to(x.device) @ (x @ columns.T.to(x.device))
    return total.div_(1 + sum(count for count, _, _ in zooms))

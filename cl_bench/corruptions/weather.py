"""Snow, frost and fog (Hendrycks and Dietterich 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from .frost_texture import TexturePool
from .tools import Draws, floor_steps, streak, zoomed

__all__ = ["fog", "frost", "plasma", "snow"]


def plasma(count: int, size: int, decay: float, draws: Draws) -> Tensor:
    """Cloud maps by the diamond-square algorithm: ``(count, size, size)`` in [0, 1], each its own; size a power of two.

    Every round halves the spacing and sets the middle of each square, then of each edge, to the mean of its four
    neighbours (with wrap-around) plus uniform noise, whose reach falls by ``decay ** 2`` per round.
    """
    cloud = torch.zeros(count, size, size, device=draws.device)
    spacing, wobble = size, 100.0
    while spacing >= 2:
        half = spacing // 2
        shape = (count, size // spacing, size // spacing)

        def around(total: Tensor, shape: tuple[int, ...] = shape, reach: float = wobble) -> Tensor:
            return total.div_(4.0).add_(draws.uniform(shape, -reach, reach), alpha=reach)

        corners = cloud[:, ::spacing, ::spacing]
        total = corners + corners.roll(-1, 1)
        total = total + total.roll(-1, 2)
        cloud[:, half::spacing, half::spacing] = around(total)
        middles = cloud[:, half::spacing, half::spacing]
        cloud[:, ::spacing, half::spacing] = around(middles + middles.roll(1, 1) + corners + corners.roll(-1, 2))
        cloud[:, half::spacing, ::spacing] = around(middles + middles.roll(1, 2) + corners + corners.roll(-1, 1))
        spacing, wobble = half, wobble / decay
    cloud -= cloud.amin((1, 2), keepdim=True)
    return cloud.div_(cloud.amax((1, 2), keepdim=True))


def fog(x: Tensor, setting: tuple[float, float], draws: Draws) -> Tensor:
    """A plasma cloud laid over the image, which keeps its brightest value; setting = (thickness, decay)."""
    thickness, decay = setting
    height, width = x.shape[-2:]
    size = max(1 << (max(height, width) - 1).bit_length(), 2)
    cloud = plasma(len(x), size, decay, draws)[:, None, :height, :width]
    brightest = x.amax((1, 2, 3), keepdim=True)
    return (x + cloud.mul(255.0 * thickness)).mul_(brightest / (brightest + 255.0 * thickness))


def snow(x: Tensor, setting: tuple[float, float, float, float, float, float, float], draws: Draws) -> Tensor:
    """Flakes (thresholded, enlarged noise) streaked by wind, and their half-turn, over a whitened image.

    setting = (mean, spread, enlargement, threshold, streak radius, streak sigma, share of the image kept).
    """
    mean, spread, factor, threshold, radius, sigma, kept = setting
    count, _, height, width = x.shape
    flakes = zoomed(draws.normal((count, 1, height, width)).mul_(spread).add_(mean), factor)
    flakes = floor_steps(flakes.masked_fill_(flakes < threshold, 0.0).mul_(255.0))
    flakes = streak(flakes, draws.uniform((count,), -135.0, -45.0), radius, sigma)
    grey = (0.299 * x[:, :1]).add_(x[:, 1:2], alpha=0.587).add_(x[:, 2:], alpha=0.114)
    white = torch.maximum(x, grey.mul_(1.5).add_(127.5))
    return (kept * x).add_(white, alpha=1.0 - kept).add_(flakes + flakes.rot90(2, (2, 3)))


def frost(x: Tensor, setting: tuple[float, float], draws: Draws, textures: TexturePool) -> Tensor:
    """Image times its share plus a random crop of a random frost texture times its share; setting = the two shares.

    Args:
        textures: the pictures to crop from; see :mod:`cl_bench.corruptions.frost_texture`.
    """
    which = draws.integers((len(x),), 0, len(textures))
    top, left = draws.uniform((len(x),)), draws.uniform((len(x),))
    return (setting[0] * x).add_(textures.crops(which, top, left), alpha=setting[1])

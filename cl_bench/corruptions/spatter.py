"""Spatter: drops of water or mud on the lens (Hendrycks and Dietterich 2019, one of the four extra corruptions).

The water drops need edge detection, a distance map and histogram equalisation; they are written here for batches, after
the published descriptions of the OpenCV functions that the authors call (Canny with a 3 x 3 Sobel filter and the L1
norm; the 5 x 5 chamfer distance of Borgefors).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .tools import Draws, blur

__all__ = ["spatter"]

_TAN_22_5 = 0.4142135623730951


def _filtered(x: Tensor, kernel: list[list[float]], mode: str = "reflect") -> Tensor:
    """3 x 3 filter (correlation) of ``(N, H, W)``; "reflect" mirrors about the edge pixel, "replicate" repeats it."""
    weights = torch.tensor(kernel, device=x.device)
    return F.conv2d(F.pad(x[:, None], (1,) * 4, mode=mode), weights[None, None])[:, 0]


def _edges(x: Tensor, low: float, high: float) -> Tensor:
    """Canny's edges of ``(N, H, W)`` images of 0 to 255, as a mask."""
    dx = _filtered(x, [[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], "replicate")
    dy = _filtered(x, [[-1.0, -2.0, -1.0], [0.0, 0.0, 0.0], [1.0, 2.0, 1.0]], "replicate")
    size = dx.abs() + dy.abs()
    height, width = x.shape[-2:]
    padded = F.pad(size, (1, 1, 1, 1))

    def beside(down: int, right: int) -> Tensor:
        return padded[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width]

    # Keep ridges only: larger than both neighbours along the gradient, of which one may be equal.
    level = dy.abs() < dx.abs() * _TAN_22_5
    upright = dy.abs() > dx.abs() / _TAN_22_5
    falling = (dx < 0) == (dy < 0)
    ridge = torch.where(
        level,
        (size > beside(0, -1)) & (size >= beside(0, 1)),
        torch.where(
            upright,
            (size > beside(-1, 0)) & (size >= beside(1, 0)),
            torch.where(
                falling,
                (size > beside(-1, -1)) & (size > beside(1, 1)),
                (size > beside(-1, 1)) & (size > beside(1, -1)),
            ),
        ),
    )
    weak = ridge & (size > low)
    edges = weak & (size > high)
    while True:  # weak pixels join when they touch an edge
        grown = (F.max_pool2d(edges.float(), 3, 1, 1) > 0) & weak
        if torch.equal(grown, edges):
            return edges
        edges = grown


_MOVES = (
    [(dy, dx, 1.0) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))]
    + [(dy, dx, 1.4) for dy in (-1, 1) for dx in (-1, 1)]
    + [(dy, dx, 2.1969) for a in (-1, 1) for b in (-2, 2) for dy, dx in ((a, b), (b, a))]
)


def _distance(edges: Tensor, limit: float) -> Tensor:
    """Chamfer distance to the nearest edge, at most ``limit``."""
    height, width = edges.shape[-2:]
    distance = torch.where(edges, 0.0, limit)
    while True:
        padded = F.pad(distance, (2, 2, 2, 2), value=limit)
        nearer = distance
        for dy, dx, cost in _MOVES:
            nearer = torch.minimum(nearer, padded[:, 2 + dy : 2 + dy + height, 2 + dx : 2 + dx + width] + cost)
        if torch.equal(nearer, distance):
            return distance
        distance = nearer


def _equalised(x: Tensor) -> Tensor:
    """Histogram equalisation of each ``(N, H, W)`` image of whole numbers 0 to 255."""
    flat = x.flatten(1).long()
    histogram = torch.zeros(len(x), 256, device=x.device).scatter_add_(1, flat, torch.ones_like(flat, dtype=x.dtype))
    total = flat.shape[1]
    first = (histogram > 0).int().argmax(1, keepdim=True)
    lowest = histogram.gather(1, first)
    scale = 255.0 / (total - lowest).clamp(min=1.0)
    table = ((histogram.cumsum(1) - lowest) * scale).round().clamp(0.0, 255.0)
    table = torch.where(lowest == total, first.float(), table)  # a flat image stays
    return table.gather(1, flat).view_as(x)


def _box(x: Tensor) -> Tensor:
    return _filtered(x, [[1 / 9] * 3] * 3)


def _water(layer: Tensor) -> Tensor:
    """How much water: ``(N, H, W)``, the largest value of each image 1; an image without drops stays dry."""
    layer = (layer * 255.0 + 1e-3).floor_().clamp_(0.0, 255.0)
    distance = _box(_distance(_edges(layer, 50.0, 150.0), 20.0)).add_(1e-4).floor_()
    distance = _filtered(_equalised(distance), [[-2.0, -1.0, 0.0], [-1.0, 1.0, 1.0], [0.0, 1.0, 2.0]])
    drops = layer * _box(distance.clamp_(0.0, 255.0)).round_()
    return drops / drops.amax((1, 2), keepdim=True).clamp(min=1e-6)


def spatter(x: Tensor, setting: tuple[float, float, float, float, float, bool], draws: Draws) -> Tensor:
    """Smoothed noise above a threshold is liquid: pale water is added, mud covers.

    setting = (mean, spread, smoothness in pixels, threshold, strength of water or smoothness of mud, mud?).
    """
    mean, spread, sigma, threshold, strength, mud = setting
    count, _, height, width = x.shape
    layer = blur(draws.normal((count, height, width)).mul_(spread).add_(mean), sigma)
    if not mud:
        amount = _water(torch.where(layer < threshold, 0.0, layer))[:, None] * strength
        pale = torch.tensor([175.0, 238.0, 238.0], device=x.device).view(1, 3, 1, 1)
        return x + amount * pale
    cover = blur((layer > threshold).float(), strength)[:, None]
    cover = torch.where(cover < 0.8, 0.0, cover)
    brown = torch.tensor([63.0, 42.0, 20.0], device=x.device).view(1, 3, 1, 1)
    return x * (1.0 - cover) + cover * brown

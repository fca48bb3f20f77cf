"""What several corruptions share: random draws, uint8 steps, separable filters as matrices, zooming, streaking.

Inside this package an image batch is float32 ``(N, C, H, W)`` holding whole numbers 0 to 255.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Draws", "blur", "floor_steps", "smoothing_matrix", "streak", "zoom_matrix", "zoomed"]


_VALUES_PER_BLOCK = 64 * 1024


class Draws:
    """All randomness of a corruption, from one generator; numbers are made where the generator lives, then moved."""

    def __init__(self, generator: torch.Generator, device: torch.device) -> None:
        self.generator = generator
        self.device = device

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal float32 numbers of the given shape."""
        return torch.randn(shape, generator=self.generator, device=self.generator.device).to(self.device)

    def uniform(self, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform float32 numbers in [low, high)."""
        draw = torch.rand(shape, generator=self.generator, device=self.generator.device)
        return draw.mul_(high - low).add_(low).to(self.device)

    def steps(self, shape: tuple[int, ...], reach: int) -> tuple[Tensor, Tensor]:
        """Two independent tensors of uniform whole steps in -reach, ..., reach - 1, as float32."""
        spot = self.uniform(shape).mul_(2 * reach)  # one number holds both: arithmetic is cheaper than another draw
        first = spot.floor()
        second = spot.sub_(first).mul_(2 * reach).floor_()
        return first.sub_(reach), second.sub_(reach)

    def integers(self, shape: tuple[int, ...], low: int, high: int) -> Tensor:
        """Uniform int64 numbers in low, ..., high - 1."""
        draw = torch.randint(low, high, shape, generator=self.generator, device=self.generator.device)
        return draw.to(self.device)


def floor_steps(x: Tensor) -> Tensor:
    """Clip to [0, 255] and cut to whole steps, as the authors' ``np.uint8(...)`` does.

    The small offset keeps a value that is whole in float64 (as in the original) from falling one step in float32.
    """
    return x.add(1e-3).floor_().clamp_(0.0, 255.0)


@lru_cache(maxsize=64)
def _smoothing(size: int, sigma: float, truncate: float, mode: str) -> Tensor:
    radius = int(truncate * sigma + 0.5)
    steps = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (steps.double() / sigma) ** 2)
    weights /= weights.sum()
    source = torch.arange(size)[:, None] + steps[None, :]
    if mode == "nearest":
        source = source.clamp(0, size - 1)
    elif mode == "reflect":  # the edge pixel is repeated: d c b a | a b c d | d c b a
        source = source.remainder(2 * size)
        source = torch.minimum(source, 2 * size - 1 - source)
    else:
        raise ValueError(f"unknown border mode {mode!r}")
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix.scatter_add_(1, source, weights.expand(size, -1).contiguous())
    return matrix.float()


def smoothing_matrix(size: int, sigma: float, truncate: float = 4.0, mode: str = "nearest") -> Tensor:
    """Gaussian smoothing of a line of ``size`` pixels as a ``(size, size)`` matrix, borders included.

    Args:
        sigma: standard deviation in pixels.
        truncate: the kernel is cut at this many standard deviations.
        mode: "nearest" repeats the edge pixel, "reflect" mirrors about the border.
    """
    return _smoothing(size, sigma, truncate, mode)


def blur(x: Tensor, sigma: float, truncate: float = 4.0, mode: str = "nearest") -> Tensor:
    """Gaussian blur of the last two axes of ``x``; see :func:`smoothing_matrix`."""
    if int(truncate * sigma + 0.5) == 0:
        return x
    rows = smoothing_matrix(x.shape[-2], sigma, truncate, mode).to(x.device)
    columns = smoothing_matrix(x.shape[-1], sigma, truncate, mode).to(x.device)
    return rows @ (x @ columns.T)


@lru_cache(maxsize=256)
def zoom_matrix(size: int, factor: float) -> Tensor:
    """Enlarging the middle of a line by ``factor`` and cutting back to ``size``: a ``(size, size)`` matrix.

    The middle ``ceil(size / factor)`` pixels are stretched linearly, end on end, to the nearest whole length, of which
    the middle ``size`` are kept. On a picture it acts on rows and columns alike.
    """
    kept = math.ceil(size / factor)
    first = (size - kept) // 2
    length = round(kept * factor)
    trim = (length - size) // 2
    position = torch.arange(trim, trim + size, dtype=torch.float64) * ((kept - 1) / max(length - 1, 1))
    low = position.floor().clamp(0, max(kept - 2, 0)).long()
    part = position - low
    matrix = torch.zeros(size, size, dtype=torch.float64)
    line = torch.arange(size)
    matrix[line, first + low] += 1.0 - part
    matrix[line, (first + low + 1).clamp(max=size - 1)] += part
    return matrix.float()


def zoomed(x: Tensor, factor: float) -> Tensor:
    """The middle of every picture enlarged by ``factor``, same size; see :func:`zoom_matrix`."""
    rows = zoom_matrix(x.shape[-2], factor).to(x.device)
    columns = zoom_matrix(x.shape[-1], factor).to(x.device)
    return rows @ (x @ columns.T)


def streak(x: Tensor, degrees: Tensor, radius: float, sigma: float) -> Tensor:
    """One-sided motion blur, every image along its own direction, as ImageMagick's ``MotionBlurImage`` does it.

    ``2 ceil(radius) + 1`` taps with half-Gaussian weights are read at whole-pixel offsets along the direction; pixels
    outside repeat the edge. Taps too light to move a 16-bit result are left out.

    Args:
        x: ``(N, C, H, W)``, 0 to 255.
        degrees: ``(N,)`` direction of each image.

    Returns:
        ``(N, C, H, W)``, cut down to whole steps, as the reference arrays are; ImageMagick itself rounds.
    """
    taps = torch.arange(2 * math.ceil(radius) + 1, dtype=torch.float64)
    weights = torch.exp(-(taps**2) / (2.0 * sigma * sigma))
    weights /= weights.sum()
    taps = taps[: int((weights > 1e-8).sum())]
    # Sorted by direction, images with equal offsets lie side by side: each tap is a few shifted additions of slices.
    degrees, order = degrees.double().cpu().sort()
    radians = torch.deg2rad(degrees)
    shift_x = torch.ceil(taps[:, None] * torch.cos(radians) - 0.5).long()
    shift_y = torch.ceil(taps[:, None] * torch.sin(radians) - 0.5).long()
    order = order.to(x.device)
    result = torch.empty_like(x)
    # A block stays in the cache over all taps; a GPU is better off with few large steps.
    block = len(x) if x.is_cuda else max(1, _VALUES_PER_BLOCK // x[0].numel())
    for start in range(0, len(x), block):
        part = slice(start, start + block)
        streaked = _summed(x[order[part]], weights.tolist(), shift_x[:, part], shift_y[:, part])
        result[order[part]] = floor_steps(streaked)
    return result


def _summed(x: Tensor, weights: list[float], shift_x: Tensor, shift_y: Tensor) -> Tensor:
    """Sum over taps of the weighted images, each shifted by its own ``(taps, N)`` offsets; edges repeat."""
    left, top = -int(shift_x.min()), -int(shift_y.min())
    padded = F.pad(x, (left, int(shift_x.max()), top, int(shift_y.max())), mode="replicate")
    image, _, row, pixel = padded.stride()
    total = torch.zeros_like(x)
    for weight, xs, ys in zip(weights, shift_x.tolist(), shift_y.tolist(), strict=False):
        first = 0
        for (dx, dy), run in groupby(zip(xs, ys, strict=True)):
            last = first + sum(1 for _ in run)
            corner = first * image + (top + dy) * row + (left + dx) * pixel
            window = padded.as_strided((last - first, *x.shape[1:]), padded.stride(), corner)
            (total if last - first == len(x) else total[first:last]).add_(window, alpha=weight)
            first = last
    return total

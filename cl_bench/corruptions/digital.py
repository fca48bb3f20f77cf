"""Brightness, contrast, saturation, geometry and compression (Hendrycks and Dietterich 2019)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from .tools import Draws, blur

__all__ = ["brightness", "contrast", "elastic_transform", "jpeg_compression", "pixelate", "saturate"]


def brightness(x: Tensor, amount: float, draws: Draws) -> Tensor:
    """Raises V of HSV by ``amount``: hue and saturation stay, so the three channels grow in proportion."""
    value = x.amax(1, keepdim=True)
    raised = (value + 255.0 * amount).clamp_(max=255.0)
    return torch.where(value > 0, x * (raised / value.clamp(min=1.0)), raised)


def contrast(x: Tensor, amount: float, draws: Draws) -> Tensor:
    """Pulls every channel towards its own mean over the image."""
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean).mul_(amount).add_(mean)


def saturate(x: Tensor, setting: tuple[float, float], draws: Draws) -> Tensor:
    """S of HSV becomes ``S * factor + offset``; a grey pixel has hue 0, so an offset turns it red, as published."""
    factor, offset = setting
    value = x.amax(1, keepdim=True)
    depth = value - x
    saturation = depth.amax(1, keepdim=True) / value.clamp(min=1.0)
    wanted = (saturation * factor + offset).clamp_(0.0, 1.0)
    grey = saturation == 0
    red = torch.tensor([0.0, 1.0, 1.0], device=x.device).view(1, 3, 1, 1)
    return value - torch.where(grey, value * wanted * red, depth * (wanted / torch.where(grey, 1.0, saturation)))


def _box(size: int, target: int, device: torch.device) -> Tensor:
    """Pillow's box filter from ``size`` to ``target`` pixels as a ``(target, size)`` matrix."""
    scale = size / target
    stretch = max(scale, 1.0)
    centre = (torch.arange(target, dtype=torch.float64)[:, None] + 0.5) * scale
    place = torch.arange(size, dtype=torch.float64)[None, :] + 0.5
    offset = (place - centre) / stretch
    weights = ((offset > -0.5) & (offset <= 0.5)).double()
    return (weights / weights.sum(1, keepdim=True)).float().to(device)


def _resized(x: Tensor, height: int, width: int) -> Tensor:
    """Box resize, rounded half up to whole steps after the rows' pass and after the columns', as Pillow does."""
    x = (x @ _box(x.shape[-1], width, x.device).T).add_(0.5 + 1e-4).floor_()
    return (_box(x.shape[-2], height, x.device) @ x).add_(0.5 + 1e-4).floor_()


def pixelate(x: Tensor, share: float, draws: Draws) -> Tensor:
    """Shrinks the sides to ``share`` of their length and enlarges again, both with a box filter; nothing random."""
    height, width = x.shape[-2:]
    return _resized(_resized(x, max(int(height * share), 1), max(int(width * share), 1)), height, width)


def jpeg_compression(x: Tensor, quality: int, draws: Draws) -> Tensor:
    """Through libjpeg at the given quality, on the CPU, in as many threads as torch uses; nothing random."""

    def through(images: list[Tensor]) -> list[Tensor]:
        return [decode_jpeg(data, mode=ImageReadMode.RGB) for data in encode_jpeg(images, quality=quality)]

    images = list(x.to("cpu", torch.uint8).contiguous().unbind())
    threads = min(torch.get_num_threads(), len(images))
    if threads == 1:
        done = through(images)
    else:
        with ThreadPoolExecutor(threads) as pool:
            done = [image for part in pool.map(through, (images[i::threads] for i in range(threads))) for image in part]
        order = [i for start in range(threads) for i in range(start, len(images), threads)]
        done = [image for _, image in sorted(zip(order, done, strict=True), key=lambda pair: pair[0])]
    return torch.stack(done).to(x.device, torch.float32)


def _grid(across: Tensor, down: Tensor, height: int, width: int, align: bool) -> Tensor:
    """Pixel coordinates to the [-1, 1] of ``grid_sample``."""
    if align:
        scaled = (across * (2.0 / max(width - 1, 1)) - 1.0, down * (2.0 / max(height - 1, 1)) - 1.0)
    else:
        scaled = ((2.0 * across + 1.0) / width - 1.0, (2.0 * down + 1.0) / height - 1.0)
    return torch.stack(scaled, dim=-1)


def elastic_transform(x: Tensor, setting: tuple[float, float, float], draws: Draws) -> Tensor:
    """A random affine map, then a smooth random displacement of every pixel.

    setting = (displacement, its smoothness, shift of the affine map's three anchor points), shares of the image side.
    Both resample linearly; the affine map mirrors about the edge pixel. It reads at exact places, as the reference
    arrays do; OpenCV before 5 rounds them to 1/32 pixel.
    """
    count, _, height, width = x.shape
    side = min(height, width)
    strength, sigma, shift = (share * side for share in setting)
    middle = (height // 2, width // 2)
    third = side // 3
    anchors = torch.tensor(
        [
            [middle[0] + third, middle[0] + third, middle[0] - third],
            [middle[1] + third, middle[1] - third, middle[1] - third],
            [1.0, 1.0, 1.0],
        ],
        dtype=torch.float64,
        device=x.device,
    )
    moved = anchors.repeat(count, 1, 1)
    moved[:, :2] += draws.uniform((count, 3, 2), -shift, shift).transpose(1, 2)
    # Output pixel -> input pixel: the affine map that takes the moved anchors back to their places.
    back = (anchors @ torch.linalg.inv(moved))[:, :2].float()
    line_x = torch.arange(width, device=x.device, dtype=torch.float32)
    line_y = torch.arange(height, device=x.device, dtype=torch.float32)
    down, across = torch.meshgrid(line_y, line_x, indexing="ij")
    place = torch.stack([across.flatten(), down.flatten(), torch.ones_like(down).flatten()])
    source = (back @ place).unflatten(2, (height, width))
    grid = _grid(source[:, 0], source[:, 1], height, width, align=True)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=True)

    field = draws.uniform((count, 2, height, width), -1.0, 1.0)
    if sigma > 0:
        field = blur(field, sigma, truncate=3.0, mode="reflect")
    field = field.mul(strength)
    grid = _grid(across + field[:, 0], down + field[:, 1], height, width, align=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

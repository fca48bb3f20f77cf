"""AugMix views of one image as tensors: the augmentation that MEMO averages its prediction over.

Hendrycks et al., "AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty", ICLR 2020, in the form
and at the strength (level 1) of zhangmarvin/memo: three chains of one to three operations, mixed with Dirichlet weights
and then with the image by a uniform weight. All views are made at once; the original makes them one by one with Pillow.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench import Rng

PIXELS = ("autocontrast", "equalize", "solarize", "posterize")
MOVES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
CHAINS, DEPTH = 3, 3


def augmix(image: Tensor, views: int, rng: Rng) -> Tensor:
    """One image (3, H, W) in [0, 1] to ``views`` AugMix views (views, 3, H, W) of random crops and flips of it.

    Small images (up to 64 pixels) are padded by 4 and cropped, larger ones cropped as ImageNet's training does.
    """
    cpu, device = rng.on("cpu"), image.device
    base = _crops(image, views, rng)
    w = torch.empty(views, CHAINS).exponential_(generator=cpu)
    w = (w / w.sum(1, keepdim=True)).to(device)
    m = torch.rand(views, 1, 1, 1, generator=cpu).to(device)
    depth = torch.randint(1, DEPTH + 1, (views * CHAINS,), generator=cpu)
    v = base.repeat_interleave(CHAINS, 0)
    for level in range(DEPTH):
        choice = torch.randint(len(PIXELS) + len(MOVES), (len(v),), generator=cpu)
        strength = 0.1 + 0.9 * torch.rand(len(v), generator=cpu)
        sign = torch.where(torch.rand(len(v), generator=cpu) > 0.5, -1.0, 1.0)
        for k, name in enumerate((*PIXELS, "move")):
            rows = ((choice == k if name in PIXELS else choice >= k) & (depth > level)).nonzero().flatten()
            if len(rows):
                at = rows.to(device)
                v[at] = _pixels(v[at], name, strength[rows]) if name in PIXELS else _move(
                    v[at], choice[rows] - k, strength[rows], sign[rows])
    mixed = (v.unflatten(0, (views, CHAINS)) * w.view(views, CHAINS, 1, 1, 1)).sum(1)
    return m * base + (1 - m) * mixed


def _crops(image: Tensor, views: int, rng: Rng) -> Tensor:
    cpu, (height, width) = rng.on("cpu"), image.shape[-2:]
    u = torch.rand(views, 5, generator=cpu)
    x = image.expand(views, -1, -1, -1)
    flip = torch.where(u[:, 4] < 0.5, -1.0, 1.0)
    if max(height, width) <= 64:  # whole pixels of a border of 4, as RandomCrop(32, padding=4)
        dx, dy = ((u[:, k] * 9).floor() - 4 for k in (0, 1))
        scale_x = scale_y = torch.ones(views)
        shift_x, shift_y = 2 * dx / width, 2 * dy / height
    else:  # area 0.08 to 1, aspect 3/4 to 4/3, as RandomResizedCrop
        area = 0.08 + 0.92 * u[:, 0]
        ratio = torch.exp((2 * u[:, 1] - 1) * math.log(4 / 3))
        scale_x, scale_y = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        shift_x, shift_y = (2 * u[:, 2] - 1) * (1 - scale_x), (2 * u[:, 3] - 1) * (1 - scale_y)
    zero = torch.zeros(views)
    theta = torch.stack([torch.stack([scale_x * flip, zero, shift_x], 1), torch.stack([zero, scale_y, shift_y], 1)], 1)
    return _warp(x, theta, (0.0, 0.0, 0.0))


def _pixels(x: Tensor, name: str, strength: Tensor) -> Tensor:
    """An operation on values, for images (n, 3, H, W) with strengths (n,) in 0.1 to 1, a tenth of Pillow's range."""
    if name in ("autocontrast", "equalize"):
        return _by_channel(x, name)
    if name == "posterize":  # int(0.4 strength) is 0: always 4 bits are kept
        return torch.floor(x * 255 / 16) * 16 / 255
    cut = (256 - torch.floor(strength * 25.6)).view(-1, 1, 1, 1).to(x) / 255
    return torch.where(x < cut, x, 1 - x)


def _move(x: Tensor, kind: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    """Every image by its own geometric operation, an index into ``MOVES`` (n,): one resampling for all."""
    height, width = x.shape[-2:]
    angle = torch.deg2rad(sign * torch.floor(3 * strength)) * (kind == 0)
    shear_x, shear_y = (sign * 0.03 * strength * (kind == k) for k in (1, 2))
    theta = torch.zeros(len(x), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = angle.cos()
    theta[:, 0, 1] = (-angle.sin() + shear_x) * height / width
    theta[:, 1, 0] = (angle.sin() + shear_y) * width / height
    # Pillow's affine transform shears about the corner, not the centre: what is there moves along
    theta[:, 0, 2] = sign * torch.floor(strength * width / 30) * 2 / width * (kind == 3) + shear_x * height / width
    theta[:, 1, 2] = sign * torch.floor(strength * height / 30) * 2 / height * (kind == 4) + shear_y * width / height
    return _warp(x, theta, (128 / 255, 0.0, 0.0))  # Pillow takes the original's fillcolor=128 as (128, 0, 0)


def _warp(x: Tensor, theta: Tensor, fill: tuple[float, float, float]) -> Tensor:
    """Bilinear resampling with coordinates in [-1, 1]; outside is ``fill``."""
    with torch.autocast(x.device.type, enabled=False):  # a product of matrices: bfloat16 would move pixels
        grid = F.affine_grid(theta.to(x), list(x.shape), align_corners=False)
    color = torch.tensor(fill, device=x.device, dtype=x.dtype).view(1, 3, 1, 1)
    out = F.grid_sample(x - color, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + color
    return out.clamp_(0, 1)  # rounding must not leave the range: posterize would turn -1e-9 into a dark step


def _by_channel(x: Tensor, name: str) -> Tensor:
    """Pillow's autocontrast and equalize, per channel over 256 steps."""
    steps = (x * 255).round().clamp(0, 255).to(torch.int64).flatten(2)  # (n, 3, H W)
    if name == "autocontrast":
        low, high = steps.amin(2, keepdim=True), steps.amax(2, keepdim=True)
        out = torch.where(high > low, (steps - low) * 255.0 / (high - low).clamp(min=1), steps.to(x.dtype))
    else:
        counts = torch.zeros(*steps.shape[:2], 256, dtype=torch.int64, device=x.device)
        counts.scatter_add_(2, steps, torch.ones_like(steps))
        last = counts.gather(2, steps.amax(2, keepdim=True))
        step = (counts.sum(2, keepdim=True) - last) // 255
        table = (step // 2 + counts.cumsum(2) - counts) // step.clamp(min=1)
        out = torch.where(step > 0, table.clamp(0, 255).gather(2, steps), steps)
    return (out.to(x.dtype) / 255).unflatten(2, x.shape[2:])

"""Training augmentations on batches: images float (N, 3, H, W) in [0, 1] and a generator to images of the same shape."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored left to right with probability 1/2."""
    mirrored = torch.rand(len(x), generator=generator, device=generator.device).to(x.device) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)


@dataclass(frozen=True)
class CropFlip:
    """Zero padding, a random crop of the old size, a random flip: the CIFAR standard (He et al., CVPR 2016)."""

    padding: int = 4

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = x.shape
        p = self.padding
        top, left = torch.randint(0, 2 * p + 1, (2, n, 1), generator=generator, device=generator.device).to(x.device)
        rows = (top + torch.arange(height, device=x.device)).view(n, 1, height, 1)
        columns = (left + torch.arange(width, device=x.device)).view(n, 1, 1, width)
        padded = F.pad(x, (p, p, p, p))
        return flip(padded[torch.arange(n, device=x.device).view(n, 1, 1, 1),
                           torch.arange(3, device=x.device).view(1, 3, 1, 1), rows, columns], generator)


@dataclass(frozen=True)
class ResizedCropFlip:
    """A random crop of ``scale`` of the area and an aspect ratio of 3/4 to 4/3, resized (bilinear) to the old size, and a
    random flip: torchvision's RandomResizedCrop with the scale of LAMDA-PILOT."""

    scale: float = 0.05

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        n = len(x)
        u = torch.rand(4, n, generator=generator, device=generator.device).to(x)
        area = self.scale + (1 - self.scale) * u[0]
        ratio = torch.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * u[1])
        w, h = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        cx, cy = (1 - w) * (2 * u[2] - 1), (1 - h) * (2 * u[3] - 1)
        zero = torch.zeros_like(w)
        theta = torch.stack([torch.stack([w, zero, cx], 1), torch.stack([zero, h, cy], 1)], 1)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return flip(F.grid_sample(x, grid, padding_mode="border", align_corners=False), generator)

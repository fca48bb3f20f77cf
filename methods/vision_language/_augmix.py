"""AugMix as test-time prompt tuning applies it: chains of mild changes of an image, mixed with it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from cl_bench import Rng

WIDTH, DEPTH = 3, 3  # chains, and changes in a chain at most


def mixed(x: Tensor, rng: Rng) -> Tensor:
    """Images (N, 3, H, W) in [0, 1], each mixed with three chains of one to three changes of it.

    Hendrycks et al., "AugMix", ICLR 2020, at severity 1 with Beta(1, 1) and Dirichlet(1, 1, 1), as TPT (azshue/TPT,
    data/augmix_ops.py). Strengths are those that its integer arithmetic leaves: at most 2 degrees, 4 bits, a thirtieth of
    the side. Shears are about the centre here, about the corner there.
    """
    gen = rng.on("cpu")
    return torch.stack([_mixed(image, gen) for image in x])


def _mixed(image: Tensor, gen: torch.Generator) -> Tensor:
    kept = float(torch.rand((), generator=gen))
    weights = -torch.rand(WIDTH, generator=gen).clamp_min(1e-12).log()
    weights = weights / weights.sum()
    plain = (image * 255).round().clamp(0, 255).to(torch.uint8)
    total = torch.zeros_like(image)
    for w in weights.tolist():
        changed = plain
        for _ in range(int(torch.randint(1, DEPTH + 1, (), generator=gen))):
            which = int(torch.randint(len(CHANGES), (), generator=gen))
            level, sign = (0.1 + 0.9 * torch.rand(2, generator=gen)).tolist()
            changed = CHANGES[which](changed, level, 1 if sign > 0.55 else -1)
        total = total + w * changed.to(image) / 255
    return kept * image + (1 - kept) * total


def _affine(image: Tensor, x: float = 0.0, y: float = 0.0, shear: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    degrees = [float(torch.tensor(s).atan().rad2deg()) for s in shear]
    return tv.affine(image, angle=0.0, translate=[x, y], scale=1.0, shear=degrees)


#: (uint8 image, strength from 0.1 to 1, sign) to an image
CHANGES: tuple[Callable[[Tensor, float, int], Tensor], ...] = (
    lambda image, level, sign: tv.autocontrast(image),
    lambda image, level, sign: tv.equalize(image),
    lambda image, level, sign: tv.posterize(image, bits=4),
    lambda image, level, sign: tv.rotate(image, sign * int(3 * level)),
    lambda image, level, sign: tv.solarize(image, threshold=256 - int(25.6 * level)),
    lambda image, level, sign: _affine(image, shear=(sign * 0.03 * level, 0.0)),
    lambda image, level, sign: _affine(image, shear=(0.0, sign * 0.03 * level)),
    lambda image, level, sign: _affine(image, x=sign * int(level * image.shape[2] / 30)),
    lambda image, level, sign: _affine(image, y=sign * int(level * image.shape[1] / 30)),
)

"""Pictures of frost for the frost corruption: made here, or read from a folder.

The authors lay crops of five photographs over the images. Those photographs are not ours to ship, so the default is five
generated textures with the photographs' mean colours, spreads, skewness and correlation over distance (measured on
the published data): needles of ice over a drifting ground. **An approximation**: the shapes differ from the
photographs'. For the photographs themselves give the folder of the authors' repository that holds ``frost1.png`` to
``frost5.jpg`` as ``frost_textures``: with them, and the same crops, the result equals the authors' arrays exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.files import Bounds
from ..data.pixels import decode_image
from ..errors import UserError
from .tools import blur

__all__ = ["TexturePool", "generated", "pool_for", "read_folder"]

_SIDE = 640


@dataclass(frozen=True)
class _Look:
    """One texture: colours 0 to 255, spreads in the same unit, shares of variance, lengths in pixels."""

    colour: tuple[float, float, float]
    spread: float
    needles: float  # share of the variance in needles
    drift: float  # share of the variance in the slow ground; the rest lies in between
    length: float  # of a needle
    skew: float  # > 0: bright needles on dark, < 0: dark gaps in white
    patchy: float  # how much the needles come and go
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)  # slow change of colour


_LOOKS = (
    _Look((77.7, 149.1, 165.7), 18.0, 0.32, 0.60, 2.0, 0.1, 0.2, (1.2, 0.95, 0.65), (16.0, 1.0, -8.0)),
    _Look((200.8, 205.4, 214.5), 22.0, 0.38, 0.45, 2.0, -0.35, 0.3),  # twice: the authors' second and third are one picture
    _Look((137.6, 152.8, 165.2), 29.0, 0.50, 0.40, 1.5, 0.25, 0.4),
    _Look((112.4, 123.4, 134.8), 43.3, 0.38, 0.40, 2.5, 0.3, 0.4),
)


def _unit(x: Tensor) -> Tensor:
    return (x - x.mean()) / x.std()


def _field(side: int, sigma: float, generator: torch.Generator) -> Tensor:
    """Smooth noise: made on a coarse grid where it is smooth anyway, then interpolated."""
    step = max(1, int(sigma / 2))
    small = math.ceil(side / step)
    coarse = blur(torch.randn(small, small, generator=generator), sigma / step, mode="reflect")
    size = (small * step, small * step)
    return _unit(F.interpolate(coarse[None, None], size, mode="bicubic", align_corners=False)[0, 0, :side, :side])


def _needles(side: int, length: float, generator: torch.Generator) -> Tensor:
    """Noise drawn out along one of six directions, which changes from place to place."""
    reach = math.ceil(2.5 * length)
    line = torch.arange(-reach, reach + 1, dtype=torch.float32)
    y, x = torch.meshgrid(line, line, indexing="ij")
    angle = torch.arange(6).mul(math.pi / 6)[:, None, None]
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    kernels = torch.exp(-0.5 * ((along / length) ** 2 + (across / 0.7) ** 2))
    kernels /= kernels.square().sum((1, 2), keepdim=True).sqrt()
    noise = torch.randn(1, 1, side + 2 * reach, side + 2 * reach, generator=generator)
    drawn = F.conv2d(noise, kernels[:, None])[0]
    choice = torch.stack([_field(side, 4.0 * length, generator) for _ in range(6)]).argmax(0, keepdim=True)
    return _unit(drawn.gather(0, choice)[0])


@lru_cache(maxsize=2)
def generated(side: int = _SIDE) -> tuple[Tensor, ...]:
    """Five textures ``(3, side, side)``, float32 whole numbers 0 to 255; always the same. Takes about a second."""
    textures = []
    for number, look in enumerate(_LOOKS):
        generator = torch.Generator().manual_seed(1900 + number)
        patches = (1.0 + look.patchy * _field(side, 40.0, generator)).clamp(min=0.1)
        needles = _needles(side, look.length, generator)
        needles = _unit(torch.expm1(look.skew * needles) * patches)
        between = _field(side, 4.0, generator)
        ground = _field(side, 60.0, generator)
        rest = 1.0 - look.needles - look.drift
        shade = needles * look.needles**0.5 + between * rest**0.5 + ground * look.drift**0.5
        shade = _unit(shade) * look.spread * math.copysign(1.0, look.skew)
        hue = _field(side, 60.0, generator)
        channels = [c + g * shade + t * hue for c, g, t in zip(look.colour, look.gains, look.tint, strict=True)]
        textures.append(torch.stack(channels).round_().clamp_(0.0, 255.0))
    textures.insert(1, textures[1])
    return tuple(textures)


@lru_cache(maxsize=2)
def read_folder(folder: str) -> tuple[Tensor, ...]:
    """The first five pictures of a folder by name, ``(3, h, w)`` each: the authors' draw never reaches their sixth.

    Raises:
        UserError: the folder or pictures in it are missing, or a picture cannot be read.
    """
    path = Path(folder)
    entries = sorted(path.glob("[!.]*")) if path.is_dir() else []
    files = [f for f in entries if f.suffix.lower() in {".png", ".jpg", ".jpeg"}]
    if not files:
        raise UserError(f"No frost pictures (.png, .jpg) in '{folder}': give the folder that holds them, or none.")
    bounds = Bounds(path)
    return tuple(decode_image(bounds.check(file)).float() for file in files[:5])


class TexturePool:
    """Textures side by side in one tensor, so that crops of a whole batch are one lookup."""

    def __init__(self, textures: Sequence[Tensor], shrink: int, size: tuple[int, int], device: torch.device) -> None:
        # Reducing by an odd whole factor with linear interpolation reads exactly the middle pixel of each block.
        small = [t.to(device)[:, shrink // 2 :: shrink, shrink // 2 :: shrink] for t in textures]
        for t in small:
            if t.shape[1] < size[0] or t.shape[2] < size[1]:
                raise UserError(
                    f"A frost texture of {t.shape[1]} x {t.shape[2]} pixels (after reduction by {shrink}) is smaller "
                    f"than the images ({size[0]} x {size[1]}): give larger textures."
                )
        self.size = size
        self.flat = torch.cat([t.flatten(1) for t in small], dim=1)
        widths = [t.shape[2] for t in small]
        starts = [0]
        for t in small[:-1]:
            starts.append(starts[-1] + t[0].numel())
        self.start = torch.tensor(starts, device=device)
        self.width = torch.tensor(widths, device=device)
        self.room = torch.tensor([[max(s - n, 1) for s, n in zip(t.shape[1:], size, strict=True)] for t in small])
        self.room = self.room.to(device)

    def __len__(self) -> int:
        return len(self.start)

    def crops(self, which: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """``(N, 3, H, W)`` crops of texture ``which`` at the shares ``top`` and ``left`` in [0, 1) of the free room."""
        room = self.room[which]
        row = (top * room[:, 0]).long()
        column = (left * room[:, 1]).long()
        corner = self.start[which] + row * self.width[which] + column
        height, width = self.size
        down = torch.arange(height, device=which.device)[:, None] * self.width[which][:, None, None]
        place = corner[:, None, None] + down + torch.arange(width, device=which.device)
        return torch.stack([channel.take(place) for channel in self.flat], dim=1)


@lru_cache(maxsize=4)
def _pool(folder: str | None, shrink: int, size: tuple[int, int], device: torch.device) -> TexturePool:
    if folder is not None:
        textures = read_folder(folder)
    else:
        need = shrink * max(size)
        textures = generated(_SIDE if need <= 0.8 * _SIDE else math.ceil(1.25 * need / 128) * 128)
    return TexturePool(textures, shrink, size, device)


def pool_for(
    textures: str | Path | Sequence[Tensor] | None, shrink: int, size: tuple[int, int], device: torch.device
) -> TexturePool:
    """The pool for ``textures``: a folder, tensors ``(3, h, w)`` of 0 to 255, or None for the generated ones."""
    if textures is None or isinstance(textures, (str, Path)):
        return _pool(None if textures is None else str(textures), shrink, size, device)
    return TexturePool(textures, shrink, size, device)

"""The two embedded backbones, pretrained on rendered letters; `tools/pretrain_backbones.py` makes their weights.

No digit, rendered or handwritten, is in their pretraining, so "pretrained, then adapted to other data" holds on digits.
The cards beside the weights say data, seed, command, accuracy and sha256.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.glyphs import LETTERS
from ..errors import UserError
from ..ranges import Seed, bounded
from ..rng import seeded
from .base import Backbone, Preprocess
from .checkpoints import load_exactly, read_weights

__all__ = ["glyph_resnet", "glyph_vit"]

WEIGHTS = Path(__file__).parent / "weights"


@bounded
def glyph_vit(*, pretrained: bool = True, seed: Seed = 0) -> Backbone:
    """Small vision transformer on 16 x 16 pixels (16 patches and a class token), pretrained on letters.

    Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021, as timm's `VisionTransformer`. The head knows the
    52 letters.

    Args:
        pretrained: load the embedded weights; False leaves the random ones, as a baseline.
        seed: of the random weights.
    """
    return _build("glyph_vit", _vit, Preprocess(16, (0.5,) * 3, (0.5,) * 3, "bilinear"), pretrained, seed)


@bounded
def glyph_resnet(*, pretrained: bool = True, seed: Seed = 0) -> Backbone:
    """Small residual network with BatchNorm on 32 x 32 pixels, widths 16, 32 and 64, pretrained on letters.

    He et al., "Deep residual learning for image recognition", CVPR 2016, with projection shortcuts. BatchNorm2d after
    every convolution, so that methods which adapt normalisation statistics apply. The head knows the 52 letters.

    Args:
        pretrained: load the embedded weights; False leaves the random ones, as a baseline.
        seed: of the random weights.
    """
    return _build("glyph_resnet", _resnet, Preprocess(32, (0.5,) * 3, (0.5,) * 3, "bilinear"), pretrained, seed)


def card_digest(name: str) -> str:
    """The sha256 that the card of an embedded backbone states."""
    card = WEIGHTS / f"{name}.md"
    found = re.search(r"\b[0-9a-f]{64}\b", card.read_text(encoding="utf-8")) if card.is_file() else None
    if found is None:
        raise UserError(
            f'The card "{card}" of the embedded weights is missing or states no sha256: install cl-bench again.'
        )
    return found.group()


def _build(
    name: str, make: Callable[[], tuple[nn.Module, int]], how: Preprocess, pretrained: bool, seed: int
) -> Backbone:
    with seeded(seed):
        trunk, width = make()
        head = nn.Linear(width, len(LETTERS))
    info: dict[str, Any] = {
        "name": name,
        "args": {"pretrained": pretrained, "seed": seed},
        "source": f"random, seed {seed}",
    }
    if pretrained:
        file = WEIGHTS / f"{name}.safetensors"
        state, digest = read_weights(
            file, card_digest(name), "the embedded weights are missing, install cl-bench again."
        )
        load_exactly(nn.ModuleDict({"model": trunk, "head": head}), state, file)
        info |= {"args": {}, "sha256": digest, "source": f"cl_bench.backbones/weights/{file.name}", "knows": "letters"}
    return Backbone(trunk, num_features=width, head=head, classes=LETTERS, preprocess=how, info=info, any_layout=True).eval()


def _vit() -> tuple[nn.Module, int]:
    from timm.models.vision_transformer import VisionTransformer

    width = 64
    trunk = VisionTransformer(
        img_size=16,
        patch_size=4,
        embed_dim=width,
        depth=3,
        num_heads=4,
        mlp_ratio=2.0,
        num_classes=0,
        global_pool="token",
    )
    return trunk, width


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm around a shortcut; a 1 x 1 projection where the shape changes."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """(N, width_in, H, W) -> (N, width, H / stride, W / stride)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """Stem with stride 2, then one stage per width; the mean over the last map is the feature vector."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), blocks: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = nn.Sequential()
        width_in = widths[0]
        for i, width in enumerate(widths):
            for j in range(blocks):
                self.stages.append(ResidualBlock(width_in, width, 2 if i and not j else 1))
                width_in = width

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> features (N, widths[-1])."""
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.stages(x).mean((2, 3))


def _resnet() -> tuple[nn.Module, int]:
    return SmallResNet((16, 32, 64), 1), 64

"""Tiny networks of random weights in the place of large pretrained ones, to try a configuration without its weights.

They have the parts that methods look for (twelve blocks with attention, or BatchNorm after convolutions) and know nothing;
no list of backbones shows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..ranges import Pixels, Seed, bounded
from ..rng import seeded
from .base import Backbone, Preprocess
from .glyph import SmallResNet

__all__: list[str] = []


@bounded
def tiny_vit(*, size: Pixels = 32, classes: list[str] | None = None, seed: Seed = 0) -> Backbone:
    """A vision transformer of twelve blocks, 32 wide, four patches; a head for ``classes`` where there are any."""
    from timm.models.vision_transformer import VisionTransformer

    with seeded(seed):
        trunk = VisionTransformer(img_size=size, patch_size=size // 2, embed_dim=32, depth=12, num_heads=4, mlp_ratio=2.0,
                                  num_classes=0, global_pool="token")
    return _backbone("tiny_vit", trunk, 32, size, classes or (), seed)


@bounded
def tiny_resnet(*, size: Pixels = 32, classes: list[str] | None = None, seed: Seed = 0) -> Backbone:
    """A residual network with BatchNorm, 8 to 32 channels; a head for ``classes`` where there are any."""
    with seeded(seed):
        trunk = SmallResNet((8, 16, 32))
    return _backbone("tiny_resnet", trunk, 32, size, classes or (), seed)


def _backbone(name: str, trunk: nn.Module, width: int, size: int, classes: Sequence[str], seed: int) -> Backbone:
    with seeded(seed):
        head = nn.Linear(width, len(classes)) if classes else None
    info: dict[str, Any] = {"name": name, "args": {"size": size}, "source": f"random, seed {seed}"}
    return Backbone(trunk, num_features=width, head=head, classes=tuple(classes), preprocess=Preprocess(size), info=info).eval()

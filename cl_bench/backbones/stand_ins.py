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


@bounded
def tiny_clip(*, size: Pixels = 32, seed: Seed = 0) -> Backbone:
    """OpenCLIP's own two towers, two blocks each and 32 wide, with CLIP's vocabulary: it reads any name and knows nothing."""
    from open_clip.model import CLIP

    from .vision_language import VisionLanguageBackbone

    towers: dict[str, Any] = {
        "vision_cfg": {"image_size": size, "patch_size": size // 2, "width": 32, "layers": 2, "head_width": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
    }
    with seeded(seed):
        clip = CLIP(32, **towers)
    info: dict[str, Any] = {"name": "tiny_clip", "args": {"size": size}, "source": f"random, seed {seed}"}
    return VisionLanguageBackbone(clip, context_name="ViT-B-16", config={"embed_dim": 32, **towers}, num_features=32,
                                  preprocess=Preprocess(size), info=info).eval()


def _backbone(name: str, trunk: nn.Module, width: int, size: int, classes: Sequence[str], seed: int) -> Backbone:
    with seeded(seed):
        head = nn.Linear(width, len(classes)) if classes else None
    info: dict[str, Any] = {"name": name, "args": {"size": size}, "source": f"random, seed {seed}"}
    return Backbone(trunk, num_features=width, head=head, classes=tuple(classes), preprocess=Preprocess(size), info=info).eval()

"""The CIFAR-10 network with group normalisation on which correlated test streams are published."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ranges import Seed, Size, Text, bounded
from ..rng import seeded
from .base import Backbone, Preprocess
from .cifar_wide import loaded

__all__ = ["cifar_resnet_gn"]

HINT = "it should be resnet26_gn.pth, which zhangmarvin/memo and mariodoebler/test-time-adaptation say where to fetch."


@bounded
def cifar_resnet_gn(*, weights: Text | None = None, depth: Literal[20, 26, 32, 44, 56, 110] = 26, groups: Size = 8,
                    sha256: Text | None = None, seed: Seed = 0) -> Backbone:
    """ResNet-26 for 32 x 32 pixels with group normalisation before convolutions, 64 features; how many classes it has is read
    from its weights.

    Sun et al., "Test-Time Training with Self-Supervision", ICML 2020 (yueatsprograms/ttt_cifar_release), as Zhang et al. (MEMO,
    NeurIPS 2022) trained it on CIFAR-10. Images have mean 0.5 and deviation 0.5.

    Args:
        weights: state dict (`.pth`, `.safetensors`); None = random weights without a head.
        depth: 6n + 2 layers.
        groups: of a norm.
        sha256: expected digest of the file, or its beginning.
        seed: of random weights.

    Raises:
        UserError: a file that is missing, damaged, or of another network.
    """
    with seeded(seed):
        trunk = CifarResNetGN((depth - 2) // 6, groups)
    return loaded(trunk, "fc", 64, Preprocess(32, (0.5,) * 3, (0.5,) * 3, "bilinear"), weights, sha256, seed,
                  {"name": f"cifar_resnet{depth}_gn", "args": {"groups": groups}}, HINT)


class PreBlock(nn.Module):
    """Two convolutions, each behind a norm; where the width grows, the shortcut is averaged and new channels are zero."""

    def __init__(self, width_in: int, width: int, stride: int, groups: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.GroupNorm(groups, width_in), nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.GroupNorm(groups, width), nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.stride, self.extra = stride, width - width_in

    def forward(self, x: Tensor) -> Tensor:
        """(N, width_in, H, W) -> (N, width, H / stride, W / stride)."""
        y = self.conv1(torch.relu(self.bn1(x)))
        y = self.conv2(torch.relu(self.bn2(y)))
        if self.extra:
            x = F.pad(F.avg_pool2d(x, self.stride), (0, 0, 0, 0, 0, self.extra))
        return x + y


class CifarResNetGN(nn.Module):
    """Stem, three stages of n blocks with 16, 32 and 64 channels, a last norm; the mean over the last 8 x 8 map."""

    def __init__(self, n: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.layer1 = nn.Sequential(*(PreBlock(16, 16, 1, groups) for _ in range(n)))
        self.layer2 = nn.Sequential(*(PreBlock(32 if i else 16, 32, 1 if i else 2, groups) for i in range(n)))
        self.layer3 = nn.Sequential(*(PreBlock(64 if i else 32, 64, 1 if i else 2, groups) for i in range(n)))
        self.bn = nn.GroupNorm(groups, 64)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, 32, 32) -> features (N, 64)."""
        return torch.relu(self.bn(self.layer3(self.layer2(self.layer1(self.conv1(x)))))).mean((2, 3))

"""The CIFAR-10 residual networks of the first paper, with weights from a folder."""

from __future__ import annotations

import json
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.classes import CIFAR10
from ..data.files import existing_file, existing_folder
from ..errors import UserError
from ..ranges import Size, Text, bounded
from .base import Backbone, Preprocess
from .checkpoints import load_exactly, read_weights

__all__ = ["cifar_resnet"]


@bounded
def cifar_resnet(*, depth: Literal[20, 32, 44, 56, 110] = 20, folder: Text) -> Backbone:
    """ResNet-20 to ResNet-110 for 32 x 32 pixels, trained on CIFAR-10; 64 features, head of 10 classes.

    He et al., "Deep residual learning for image recognition", CVPR 2016, section 4.2, shortcut option A (no
    parameters). Names of layers and weights as in the public weights of akamaster/pytorch_resnet_cifar10.

    Args:
        depth: 6n + 2 layers.
        folder: holds `model.safetensors` and `config.json` with mean, std and the weights' sha256, which is checked.

    Raises:
        UserError: a depth that is not 6n + 2, or files that are missing, damaged, or of another depth.
    """
    if depth < 8 or (depth - 2) % 6:
        raise UserError(f"These residual networks have 6n + 2 layers, not {depth}: use depth 20, 32, 44, 56 or 110.")
    where = existing_folder(folder, "it should hold model.safetensors and config.json.")
    config_file = existing_file(where / "config.json", "it should say mean, std and sha256 of the weights.")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        how = Preprocess(32, tuple(config["mean"]), tuple(config["std"]), "bilinear")
        expected = str(config["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'"{config_file}" does not say mean, std and sha256 ({error!r}): fetch it again.') from error
    file = where / "model.safetensors"
    state, digest = read_weights(file, expected)
    trunk, head = CifarResNet((depth - 2) // 6), nn.Linear(64, 10)
    trunk.linear = head  # while loading, so that messages name the weights as the file does
    load_exactly(trunk, state, file)
    del trunk.linear
    info: dict[str, Any] = {
        "name": f"cifar_resnet{depth}",
        "args": {"depth": depth},
        "sha256": digest,
        "source": f"{where.name}/{file.name}",
    }
    return Backbone(trunk, num_features=64, head=head, classes=CIFAR10, preprocess=how, info=info, any_layout=True).eval()


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around option A: every second pixel, new channels of zeros on both sides."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.extra = stride, width - width_in

    def forward(self, x: Tensor) -> Tensor:
        """(N, width_in, H, W) -> (N, width, H / stride, W / stride)."""
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.extra:
            x = F.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2)
            )
        return torch.relu(y + x)


class CifarResNet(nn.Module):
    """Stem and three stages of n blocks with 16, 32 and 64 channels; the mean over the last 8 x 8 map."""

    def __init__(self, n: Size) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(BasicBlock(16, 16, 1) for _ in range(n)))
        self.layer2 = nn.Sequential(*(BasicBlock(32 if i else 16, 32, 1 if i else 2) for i in range(n)))
        self.layer3 = nn.Sequential(*(BasicBlock(64 if i else 32, 64, 1 if i else 2) for i in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, 32, 32) -> features (N, 64)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x))).mean((2, 3))

"""The two CIFAR networks on which continual test-time adaptation is published: WideResNet-28-10 and AugMix's ResNeXt-29."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from ..data.classes import CIFAR10, CIFAR100
from ..data.files import existing_file
from ..errors import UserError
from ..ranges import Range, Seed, Text, bounded
from ..rng import seeded
from .base import Backbone, Preprocess
from .checkpoints import load_exactly, read_weights

__all__ = ["cifar_resnext", "cifar_wide_resnet"]

Width = Annotated[int, Range(1, 64)]
HINT = "it should be robustbench's file, which its load_model downloads to models/<data set>/corruptions/<name>.pt."


@bounded
def cifar_wide_resnet(*, weights: Text | None = None, depth: Literal[16, 22, 28, 34, 40] = 28, width: Width = 10,
                      normalised: bool = False, sha256: Text | None = None, seed: Seed = 0) -> Backbone:
    """WideResNet for 32 x 32 pixels, 64 * width features; how many classes it has is read from its weights.

    Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, without dropout. Names of layers and weights as in
    RobustBench/robustbench: its `Standard` of CIFAR-10 is depth 28, width 10, as it is here by default; AugMix's of CIFAR-10
    and CIFAR-100 (`Hendrycks2020AugMix_WRN`) depth 40, width 2, normalised.

    Args:
        weights: state dict (`.pt`, `.safetensors`); None = random weights without a head.
        depth: 6n + 4 layers.
        width: times 16, 32 and 64 channels.
        normalised: the network was trained on images with mean 0.5 and deviation 0.5 (AugMix's), not on [0, 1].
        sha256: expected digest of the file, or its beginning.
        seed: of random weights.

    Raises:
        UserError: a file that is missing, damaged, or of another network.
    """
    with seeded(seed):
        trunk = CifarWideResNet((depth - 4) // 6, width)
    half = (0.5,) * 3
    how = Preprocess(32, half, half, "bilinear") if normalised else Preprocess(32, (0.0,) * 3, (1.0,) * 3, "bilinear")
    return loaded(trunk, "fc", 64 * width, how, weights, sha256, seed,
                  {"name": f"cifar_wide_resnet{depth}_{width}", "args": {"normalised": normalised}})


@bounded
def cifar_resnext(*, weights: Text | None = None, depth: Literal[29, 38, 47, 56] = 29, cardinality: Width = 4,
                  base_width: Literal[16, 32, 64] = 32, sha256: Text | None = None, seed: Seed = 0) -> Backbone:
    """ResNeXt for 32 x 32 pixels, 1,024 features; how many classes it has is read from its weights.

    Xie et al., "Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017, section 5.2, as AugMix (Hendrycks et
    al., ICLR 2020) trained it: `Hendrycks2020AugMix_ResNeXt` of RobustBench/robustbench, 4 groups of width 32, images with mean
    0.5 and deviation 0.5.

    Args:
        weights: state dict (`.pt`, `.safetensors`); None = random weights without a head.
        depth: 9n + 2 layers.
        cardinality: groups of a block.
        base_width: channels of a group, in 64ths of the block's.
        sha256: expected digest of the file, or its beginning.
        seed: of random weights.

    Raises:
        UserError: a file that is missing, damaged, or of another network.
    """
    with seeded(seed):
        trunk = CifarResNeXt((depth - 2) // 9, cardinality, base_width)
    return loaded(trunk, "classifier", 1024, Preprocess(32, (0.5,) * 3, (0.5,) * 3, "bilinear"), weights, sha256, seed,
                  {"name": f"cifar_resnext{depth}_{cardinality}x{base_width}", "args": {}})


def loaded(trunk: nn.Module, head_name: str, features: int, how: Preprocess, weights: str | None, sha256: str | None, seed: int,
           info: dict[str, Any], hint: str = HINT) -> Backbone:
    """The backbone of a trunk and of a file of its weights, in which the head is called ``head_name``; without a file, of the
    trunk as it is. ``hint`` says what the file should be."""
    head = None
    info["source"] = f"random, seed {seed}"
    if weights is not None:
        file = existing_file(Path(weights).expanduser(), hint)
        state, digest = read_weights(file, sha256)
        # robustbench's wrappers keep the normalisation beside the weights, its files with or without it.
        for name, stands_for in (("mu", how.mean), ("sigma", how.std)):
            found = state.pop(name, None)
            if found is not None and not torch.allclose(found.flatten().double(), torch.tensor(stands_for).double(), atol=1e-6):
                raise UserError(f'The weights in "{file}" want images with {name} {found.flatten().tolist()}, not '
                                f"{list(stands_for)}: name the network they are of, or its --backbone.normalised.")
        count = len(state[f"{head_name}.bias"]) if f"{head_name}.bias" in state else 10
        head = nn.Linear(features, count)
        setattr(trunk, head_name, head)  # while loading, so that messages name the weights as the file does
        load_exactly(trunk, state, file)
        delattr(trunk, head_name)
        info |= {"sha256": digest, "source": str(file)}
    names: tuple[str, ...] = ()
    if head is not None:
        names = {10: CIFAR10, 100: CIFAR100}.get(head.out_features, ())
    return Backbone(trunk, num_features=features, head=head, classes=names, preprocess=how, info=info, any_layout=True).eval()


class WideBlock(nn.Module):
    """Norm before convolution; where the width changes, the shortcut's convolution takes the normed input too."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width_in), nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(width_in, width, 1, stride, bias=False) if width_in != width else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, width_in, H, W) -> (N, width, H / stride, W / stride)."""
        y = torch.relu(self.bn1(x))
        short = x if self.convShortcut is None else self.convShortcut(y)
        return short + self.conv2(torch.relu(self.bn2(self.conv1(y))))


class WideStage(nn.Module):
    """Blocks of one width, under the name that weight files give them."""

    def __init__(self, n: int, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(*(WideBlock(width if i else width_in, width, 1 if i else stride) for i in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        """As its blocks."""
        out: Tensor = self.layer(x)
        return out


class CifarWideResNet(nn.Module):
    """Stem, three stages of n blocks, a last norm; the mean over the last 8 x 8 map."""

    def __init__(self, n: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1 = WideStage(n, 16, 16 * width, 1)
        self.block2 = WideStage(n, 16 * width, 32 * width, 2)
        self.block3 = WideStage(n, 32 * width, 64 * width, 2)
        self.bn1 = nn.BatchNorm2d(64 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, 32, 32) -> features (N, 64 * width)."""
        return torch.relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(x)))))).mean((2, 3))


class NextBlock(nn.Module):
    """Reduce, a convolution in groups, expand to four times the planes."""

    def __init__(self, width_in: int, planes: int, groups: int, base_width: int, stride: int) -> None:
        super().__init__()
        inner, out = planes * base_width // 64 * groups, planes * 4
        self.conv_reduce, self.bn_reduce = nn.Conv2d(width_in, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv_conv, self.bn = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False), nn.BatchNorm2d(inner)
        self.conv_expand, self.bn_expand = nn.Conv2d(inner, out, 1, bias=False), nn.BatchNorm2d(out)
        self.downsample = None if stride == 1 and width_in == out else nn.Sequential(
            nn.Conv2d(width_in, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """(N, width_in, H, W) -> (N, 4 * planes, H / stride, W / stride)."""
        y = torch.relu(self.bn_reduce(self.conv_reduce(x)))
        y = self.bn_expand(self.conv_expand(torch.relu(self.bn(self.conv_conv(y)))))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class CifarResNeXt(nn.Module):
    """Stem and three stages of n blocks with 64, 128 and 256 planes; the mean over the last 8 x 8 map."""

    def __init__(self, n: int, groups: int, base_width: int) -> None:
        super().__init__()
        self.conv_1_3x3, self.bn_1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)
        widths = (64, 256, 512)
        for k, planes in enumerate((64, 128, 256)):
            stage = (NextBlock(planes * 4 if i else widths[k], planes, groups, base_width, 2 if k and not i else 1)
                     for i in range(n))
            setattr(self, f"stage_{k + 1}", nn.Sequential(*stage))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, 32, 32) -> features (N, 1024)."""
        x = torch.relu(self.bn_1(self.conv_1_3x3(x)))
        return self.stage_3(self.stage_2(self.stage_1(x))).mean((2, 3))

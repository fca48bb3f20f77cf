"""Tiny networks, images and a counter of forward passes for the tests of test-time adaptation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench.adaptation import TestTimeMethod
from cl_bench.backbones import Backbone, Preprocess
from cl_bench.data import TensorData
from cl_bench.registry import find
from cl_bench.rng import Rng
from cl_bench.types import Experience, LabelSpace, StreamFacts

CLASSES = 5
SPACE = LabelSpace(tuple(range(CLASSES)))
GRADIENT = ("tent", "rpl", "eta", "eata", "rdumb", "sar", "deyo", "cotta", "psmt", "rotta", "rmt", "santa", "roid", "cmf")
EVERY = ("source", "bn", "bn_alpha", "bn_ema", *GRADIENT)
# what makes them fit a toy: few source images, batches of 8, updates that really happen on random networks
SMALL: dict[str, dict[str, Any]] = {
    "eta": {"margin": 0.97, "redundancy": 0.99},
    "eata": {"margin": 0.97, "redundancy": 0.99, "fisher_samples": 32},
    "rdumb": {"margin": 0.97, "redundancy": 0.99, "period": 50},
    "sar": {"margin": 0.97},
    "deyo": {"margin": 0.97, "plpd": -1.0},
    "cotta": {"augmentations": 3},
    "rmt": {"warmup": 32},
}
BATCH = {"eata": 16, "psmt": 16, "rmt": 16, "santa": 16}  # of the stream; 8 for the others


class Counter:
    """Forward passes of a network and all its copies, in images."""

    def __init__(self) -> None:
        self.images = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Counter:
        return self


class Convolutions(nn.Module):
    """Two convolutions, each with a norm layer."""

    def __init__(self, norm: str, counter: Counter) -> None:
        super().__init__()
        make = nn.BatchNorm2d if norm == "bn" else lambda c: nn.GroupNorm(2, c)
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), make(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 6, 3, stride=2), make(6)
        self.counter = counter

    def forward(self, x: Tensor) -> Tensor:
        self.counter.images += len(x)
        x = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(x))).mean((2, 3))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.mix = nn.LayerNorm(width), nn.Linear(width, width)
        self.norm2, self.mlp = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm1(x).mean(1, keepdim=True))
        return x + torch.tanh(self.mlp(self.norm2(x)))


class Transformer(nn.Module):
    """Four blocks over 2 x 2 patches, with a class token that no optimiser of ALL may touch."""

    def __init__(self, counter: Counter) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 2, stride=2)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 6))
        self.blocks = nn.Sequential(*(Block(6) for _ in range(4)))
        self.norm = nn.LayerNorm(6)
        self.counter = counter

    def forward(self, x: Tensor) -> Tensor:
        self.counter.images += len(x)
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.cls_token.expand(len(x), -1, -1), tokens), 1)
        return self.norm(self.blocks(tokens))[:, 0]


def backbone(norm: str = "bn") -> Backbone:
    """A random network of BatchNorm (``bn``; ``layers``: of torch's own classes alone), GroupNorm (``gn``) or LayerNorm
    (``ln``) with a head of five classes."""
    counter = Counter()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if norm == "layers":
            trunk: nn.Module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
                                             nn.AdaptiveAvgPool2d(1), nn.Flatten())
        else:
            trunk = Transformer(counter) if norm == "ln" else Convolutions(norm, counter)
        head = nn.Linear(6, CLASSES)
        head.weight.data.mul_(4)
        for m in trunk.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.2)
                m.running_var.uniform_(0.2, 0.6)
        for p in trunk.parameters():
            p.data.add_(torch.randn_like(p), alpha=0.05)
    names = tuple("abcde")
    return Backbone(trunk, num_features=6, head=head, classes=names, preprocess=Preprocess(8, (0.5,) * 3, (0.25,) * 3)).eval()


def images(n: int, seed: int = 0) -> Tensor:
    """Smooth random images (n, 3, 8, 8) in [0, 1]."""
    noise = torch.rand(n, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, size=(8, 8), mode="bilinear")


def source() -> Experience:
    """48 labelled images."""
    y = torch.arange(48) % CLASSES
    return Experience("source", SPACE, TensorData((images(48, 99) * 255).to(torch.uint8), y))


def deployed(name: str, norm: str = "bn", seed: int = 0, **hparams: Any) -> TestTimeMethod:
    """A method by name on a fresh tiny network, ready for a stream."""
    method = find("cl_bench.methods", name)(backbone(norm), **{**SMALL.get(name, {}), **hparams}).eval()
    method.rng = Rng(seed)
    method.deploy(source() if "source" in method.needs else None, StreamFacts(BATCH.get(name, 8), SPACE))
    return method


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, NaN included."""
    return torch.equal(a.nan_to_num(123.0), b.nan_to_num(123.0))

"""Tiny networks whose norm statistics fit their images, with attention in timm's names, and a long-tailed source that a
classifier can learn."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench.adaptation import TestTimeMethod
from cl_bench.backbones.base import Backbone, Preprocess
from cl_bench.data.tensor import TensorData
from cl_bench.heads import FixedHead
from cl_bench.registry import find
from cl_bench.rng import Rng
from cl_bench.types import Experience, LabelSpace

CLASSES = 4
SPACE = LabelSpace(tuple(range(CLASSES)))


class Attention(nn.Module):
    """One head over the pixels' rows, with the names of timm's layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.proj(F.scaled_dot_product_attention(q, k, v))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm1, self.attn, self.norm = nn.Linear(24, 12), nn.LayerNorm(12), Attention(12), nn.LayerNorm(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.transpose(1, 2).flatten(2))
        x = x + self.attn(self.norm1(x))
        return self.norm(x.mean(1))


def trunk(norm: str) -> nn.Module:
    if norm == "ln":
        return Transformer()
    make = {"bn": nn.BatchNorm2d, "gn": lambda c: nn.GroupNorm(2, c)}[norm]
    return nn.Sequential(nn.Conv2d(3, 8, 3), make(8), nn.ReLU(), nn.Conv2d(8, 12, 3), make(12), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten())  # fmt: skip


def backbone(norm: str = "bn") -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = trunk(norm)
        head = nn.Linear(12, CLASSES)
        head.weight.data.mul_(6)
        if norm == "bn":  # running statistics that are the images' own, so that the source model is a sensible one
            net.train()
            for _ in range(40):
                net(images(64, 5))
    made = Backbone(net.eval(), num_features=12, preprocess=Preprocess(None), head=head)
    return made


def images(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def source(n: int = 200, counts: tuple[int, ...] | None = None) -> Experience:
    """Images whose label is where they are bright."""
    counts = counts or (n // CLASSES,) * CLASSES
    y = torch.repeat_interleave(torch.arange(CLASSES), torch.tensor(counts))
    x = images(len(y), 3) * 0.5
    for c in range(CLASSES):
        x[y == c, :, (c // 2) * 4 : (c // 2) * 4 + 4, (c % 2) * 4 : (c % 2) * 4 + 4] += 0.06
    return Experience("source", SPACE, TensorData((x.clamp(0, 1) * 255).to(torch.uint8), y))


def deployed(name: str, norm: str = "bn", seed: int = 1, **kwargs: Any) -> TestTimeMethod:
    method = find("cl_bench.methods", name)(backbone(norm), **kwargs)
    method.head = FixedHead(method.backbone.head, SPACE, 12)
    if hasattr(method, "host"):
        method.host.head = method.head
    method.rng = Rng(seed)
    method.eval()
    method.deploy(source(counts=(100, 50, 20, 10)) if "source" in method.needs else None)
    return method


def plain(norm: str, x: Tensor) -> Tensor:
    with torch.no_grad():
        return backbone(norm)(x)

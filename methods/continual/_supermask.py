"""Binary masks over weights: chosen by score with a straight-through gradient, kept at one bit per weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class _Top(torch.autograd.Function):
    """1 for the largest entries; the gradient passes as if it were the identity (edge-popup, CVPR 2020)."""

    @staticmethod
    def forward(ctx: Any, size: Tensor, density: float) -> Tensor:
        mask = torch.ones_like(size).flatten()
        mask[size.flatten().argsort()[: int((1 - density) * size.numel())]] = 0
        return mask.view_as(size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def subnet(size: Tensor, density: float) -> Tensor:
    """Mask (0 or 1, in the shape of ``size``) with the int((1 - density) n) smallest entries zero, as released."""
    return _Top.apply(size, density)  # type: ignore[no-any-return]


def top(scores: Tensor, density: float) -> Tensor:
    """The mask of the largest |score|."""
    return subnet(scores.abs(), density)


def knn_accuracy(features: Tensor, labels: Tensor, neighbours: int) -> float:
    """Share of the last third of the rows (from int(0.66 n)) whose nearest neighbours among the first vote right."""
    cut = int(len(features) * 0.66)
    near = torch.cdist(features[cut:], features[:cut]).topk(min(neighbours, cut), largest=False).indices
    return float((labels[:cut][near].mode(1).values == labels[cut:]).double().mean())


def donors(accuracies: Sequence[float], chance: float, kkt: str) -> list[int]:
    """The earlier tasks whose scores a new one starts from: the ``best`` if above chance, ``always`` the best, or ``all``
    above chance."""
    best = max(range(len(accuracies)), key=accuracies.__getitem__)
    if kkt == "all":
        return [k for k, a in enumerate(accuracies) if a > chance]
    return [best] if kkt == "always" or accuracies[best] > chance else []


def two_cosines(epoch: int, first: int, second: int) -> float:
    """A rate's factor in an epoch (from 0): a cosine to 0 over the ``first`` epochs, then another over the ``second``."""
    at, of = (epoch, first) if epoch < first else (epoch - first, second)
    return (1 + math.cos(math.pi * at / max(1, of))) / 2


def norm_state(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the running statistics of every BatchNorm, by buffer name."""
    return {
        f"{name}.{key}" if name else key: buffer.detach().clone()
        for name, layer in module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        for key, buffer in layer.named_buffers()
    }


def reset_norms(module: nn.Module) -> None:
    """Running statistics of every BatchNorm back to their start."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.reset_running_stats()


class Packed(nn.Module):
    """Masks as bits (uint8 buffers, eight weights each), and normalisation statistics by name."""

    def __init__(self, masks: list[Tensor], norms: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self.shapes = [tuple(m.shape) for m in masks]
        self.names = list(norms or {})
        for k, mask in enumerate(masks):
            self.register_buffer(f"bits{k}", pack(mask))
        for k, name in enumerate(self.names):
            self.register_buffer(f"norm{k}", (norms or {})[name])

    def read(self) -> list[Tensor]:
        """The masks, bool, in their shapes."""
        return [unpack(getattr(self, f"bits{k}"), shape) for k, shape in enumerate(self.shapes)]

    def norms(self) -> dict[str, Tensor]:
        """The normalisation statistics by name."""
        return {name: getattr(self, f"norm{k}") for k, name in enumerate(self.names)}


def pack(mask: Tensor) -> Tensor:
    """A bool tensor as uint8 (ceil(n / 8),)."""
    flat = nn.functional.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    return (flat << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(1).to(torch.uint8)


def unpack(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of :func:`pack`."""
    n = torch.Size(shape).numel()
    flat = (bits.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1
    return flat.flatten()[:n].bool().view(shape)

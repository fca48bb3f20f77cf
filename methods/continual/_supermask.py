"""Binary masks over weights: chosen by score with a straight-through gradient, kept at one bit per weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Top(torch.autograd.Function):
    """1 for the ``count`` largest entries; the gradient passes as if it were the identity (edge-popup, CVPR 2020)."""

    @staticmethod
    def forward(ctx: Any, size: Tensor, count: int) -> Tensor:
        mask = torch.zeros_like(size).flatten()
        mask[size.flatten().topk(count).indices] = 1
        return mask.view_as(size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def top(scores: Tensor, density: float) -> Tensor:
    """Mask (0 or 1, in the scores' shape) of the ``density`` share of largest |score|, at least one."""
    return _Top.apply(scores.abs(), max(1, round(density * scores.numel())))  # type: ignore[no-any-return]


def rank_first(noise: Tensor, mask: Tensor) -> Tensor:
    """The values of ``noise`` rearranged so that the largest magnitudes lie where ``mask`` is set: scores whose top is
    the mask, with the distribution of a fresh start. Draws from torch's global generator (seeded by the engine)."""
    at = torch.randperm(mask.numel(), device=mask.device)
    inside = mask.flatten()[at]
    values = noise.flatten()
    out = torch.empty_like(values)
    out[torch.cat([at[inside], at[~inside]])] = values[values.abs().argsort(descending=True)]
    return out.view_as(noise)


def norm_state(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the running statistics of every BatchNorm, by buffer name."""
    return {
        f"{name}.{key}" if name else key: buffer.detach().clone()
        for name, layer in module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        for key, buffer in layer.named_buffers()
    }


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

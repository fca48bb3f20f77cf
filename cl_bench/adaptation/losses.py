"""Losses of test-time adaptation on logits (N, C); each returns one value per sample (N,) unless it says otherwise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..rng import Rng

__all__ = [
    "contrastive",
    "cross_entropy_to",
    "entropy",
    "generalised_cross_entropy",
    "masked_mean",
    "projection_head",
    "prototype_contrast",
    "soft_likelihood_ratio",
    "symmetric_cross_entropy",
]


def entropy(logits: Tensor) -> Tensor:
    """H(p) in nats."""
    return cross_entropy_to(logits, logits)


def cross_entropy_to(target: Tensor, logits: Tensor) -> Tensor:
    """-sum_c q_c ln p_c with q from the logits ``target``; detach ``target`` where it must carry no gradient."""
    return -(target.softmax(1) * logits.log_softmax(1)).sum(1)


def symmetric_cross_entropy(a: Tensor, b: Tensor, alpha: float = 0.5) -> Tensor:
    """-(1 - alpha) sum p_b ln p_a - alpha sum p_a ln p_b."""
    return (1 - alpha) * cross_entropy_to(b, a) + alpha * cross_entropy_to(a, b)


def soft_likelihood_ratio(logits: Tensor, ceiling: float = 0.99, eps: float = 1e-5) -> Tensor:
    """-sum p ln(p / (1 - p) + eps) with p cut at ``ceiling`` and not renormalised (ROID)."""
    p = logits.softmax(1).clamp(max=ceiling)
    return -(p * torch.log(p / (1 - p) + eps)).sum(1)


def generalised_cross_entropy(logits: Tensor, q: float = 0.8) -> Tensor:
    """(1 - p_yhat^q) / q on the most probable class (RPL)."""
    return (1 - logits.softmax(1).amax(1).pow(q)) / q


def contrastive(views: list[Tensor], temperature: float = 0.1) -> Tensor:
    """SupCon's loss with one positive set per sample, a scalar: ``views`` are V tensors (N, d), L2-normalised here.

    Each of the V N rows is an anchor; its V - 1 other views are positives; the denominator runs over all rows but the
    anchor itself.
    """
    v, n = len(views), len(views[0])
    z = F.normalize(torch.cat(views), dim=1)
    alike = (z @ z.T) / temperature
    alike = alike.masked_fill(torch.eye(v * n, dtype=torch.bool, device=z.device), -torch.inf)
    log_p = alike.log_softmax(1).view(v, n, v, n).diagonal(dim1=1, dim2=3)  # (V, V, N): anchors x views of one sample
    same = torch.eye(v, dtype=torch.bool, device=z.device).unsqueeze(2)
    return -log_p.masked_fill(same, 0.0).sum(1).mean() / (v - 1)


def prototype_contrast(
    plain: Tensor, other: Tensor, prototypes: Tensor, projector: nn.Module, temperature: float
) -> Tensor:
    """RMT's contrastive loss, a scalar, of three views: the nearest source prototype (by cosine), features (N, d), and
    features of the augmented images; all pass the projector."""
    with torch.no_grad():
        near = (F.normalize(plain, dim=1) @ F.normalize(prototypes, dim=1).T).argmax(1)
    return contrastive([projector(v) for v in (prototypes[near], plain, other)], temperature)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of the values that ``mask`` selects (along ``dim``), without reading the device; 0 where it selects none."""
    kept = torch.where(mask, values, 0.0)
    return (kept.sum() if dim is None else kept.sum(dim)) / mask.sum().clamp(min=1)


def projection_head(width: int, dim: int, rng: Rng, like: Tensor) -> nn.Sequential:
    """RMT's projector, Linear(width, dim) -> ReLU -> Linear(dim, dim), drawn from ``rng`` as nn.Linear draws."""
    layers = [nn.utils.skip_init(nn.Linear, n, dim) for n in (width, dim)]
    with torch.no_grad():
        for layer in layers:
            for p in (layer.weight, layer.bias):
                p.uniform_(-(layer.in_features**-0.5), layer.in_features**-0.5, generator=rng.on("cpu"))
    return nn.Sequential(layers[0], nn.ReLU(), layers[1]).to(like)

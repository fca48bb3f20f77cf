"""Parts of ENGINE: contrast of a batch with its own, and a Gaussian classifier with one covariance for all classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def own(logits: Tensor) -> Tensor:
    """Cross-entropy of each row (n, n) for its own column."""
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def gaussian_of(h: Tensor, y: Tensor, labels: list[int]) -> tuple[Tensor, Tensor]:
    """Class means (C, h) of unit features (n, h) and the shrunk inverse (h, h) of what they share."""
    mu = torch.stack([h[y == i].mean(0) for i in labels])
    centred = torch.cat([h[y == i] - m for i, m in zip(labels, mu, strict=True)])
    cov, n, d = torch.cov(centred.T), len(centred), h.shape[1]
    return mu, d * torch.linalg.pinv((n - 1) * cov + cov.trace() * torch.eye(d).to(h))


def merged(old_mu: Tensor, old: Tensor, mu: Tensor, inverse: Tensor) -> Tensor:
    """The released mean of inverses, weighted by classes, plus what the means are apart."""
    a, b = len(old_mu), len(mu)
    total, apart = a + b, (old_mu.to(mu).mean(0) - mu.mean(0))[:, None]
    return a / total * old.to(mu) + b / total * inverse + (a / total) * (b / total**2) * apart @ apart.T


def gaussian_scores(h: Tensor, mu: Tensor, inverse: Tensor) -> Tensor:
    """``h W + b`` (N, C) of unit features (N, h), each row of unit length."""
    bias = -torch.log(torch.tensor(float(len(mu)))).to(h) - torch.einsum("nd,dc,nc->n", mu, inverse, mu) / 2
    return F.normalize(h @ (inverse @ mu.T) + bias, dim=-1)

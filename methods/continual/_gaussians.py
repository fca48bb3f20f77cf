"""A Gaussian per class over features, to rehearse a classifier without images."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Gaussians(nn.Module):
    """Mean and covariance root of each class; ``add`` once per class, ``sample`` as often as needed."""

    means: Tensor
    roots: Tensor
    labels: Tensor

    def __init__(self, width: int, ridge: float = 1e-4) -> None:
        super().__init__()
        self.ridge = ridge
        self.register_buffer("means", torch.zeros(0, width))
        self.register_buffer("roots", torch.zeros(0, width, width))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.int64))

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor) -> None:
        """Statistics of features (N, d) per global label (N,), taken in float64 with ``ridge`` on the diagonal."""
        eye = self.ridge * torch.eye(features.shape[1], dtype=torch.float64, device=features.device)
        for label in labels.unique():
            f = features[labels == label].double()
            centred = f - f.mean(0)
            cov = centred.T @ centred / max(1, len(f) - 1) + eye
            self.means = torch.cat([self.means, f.mean(0, keepdim=True).to(self.means)])
            self.roots = torch.cat([self.roots, torch.linalg.cholesky(cov).unsqueeze(0).to(self.roots)])
            self.labels = torch.cat([self.labels, label.reshape(1).to(self.labels)])

    def sample(self, n: int, generator: torch.Generator, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``n`` features of every class (C * n, d) with their labels; ``scale`` (C,) multiplies the means."""
        means = self.means if scale is None else self.means * scale.unsqueeze(1)
        noise = torch.randn(len(means), n, means.shape[1], generator=generator, device=means.device, dtype=means.dtype)
        drawn = means.unsqueeze(1) + noise @ self.roots.transpose(1, 2)
        return drawn.flatten(0, 1), self.labels.repeat_interleave(n)

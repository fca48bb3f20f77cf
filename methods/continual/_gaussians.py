"""A Gaussian per class over features, and the rehearsal of a classifier on draws from them (SLCA, models/slca.py)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench.heads import LinearHead

from ._frozen_trunk import cosine


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


def rehearse(
    head: LinearHead, draw: Callable[[], tuple[Tensor, Tensor]], sizes: list[int], batch: int, epochs: int, lr: float,
    weight_decay: float, temperature: float,
) -> list[float]:
    """Train ``head`` on what ``draw`` gives per epoch (features (n, d), columns (n,)), with normalised logits; every loss."""
    optimizer = torch.optim.SGD(head.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay)
    schedule, losses = cosine(optimizer, epochs)["lr_scheduler"]["scheduler"], []
    for _ in range(epochs):
        x, column = draw()
        for rows, target in zip(x.split(batch), column.split(batch), strict=True):
            loss = F.cross_entropy(normalised(head(rows), sizes, temperature), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        schedule.step()
    return losses


def mean_scale(column: Tensor, sizes: list[int]) -> Tensor:
    """What a class's mean is multiplied with: 0.9 + 0.1 (its task, from 1) / (tasks)."""
    edges = torch.tensor(sizes, device=column.device).cumsum(0)
    return 0.9 + 0.1 * (torch.bucketize(column, edges, right=True) + 1).double() / len(sizes)


def normalised(logits: Tensor, sizes: list[int], temperature: float) -> Tensor:
    """Logits (N, C) over the mean over tasks of each task's logit norm, over ``temperature``."""
    norm = torch.stack([part.norm(dim=1) + 1e-7 for part in logits.split(sizes, 1)]).mean(0)
    return logits / norm.unsqueeze(1) / temperature

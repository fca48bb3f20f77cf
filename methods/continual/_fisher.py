"""The diagonal Fisher information in its flavours, and what is kept of it after an experience."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

Weights = dict[str, Tensor]
Flavour = Literal["empirical", "sampled", "exact", "weighted", "batch", "batch_argmax"]


def diagonal(
    logits: Callable[[Weights, Tensor], Tensor],
    weights: Weights,
    data: Iterable[tuple[Tensor, Tensor]],
    flavour: Flavour,
    generator: torch.Generator | None = None,
    count: int = 0,
) -> Weights:
    """Squared gradients of log p(label | image), by parameter.

    ``empirical`` (true labels), ``sampled`` (from the model's answer) and ``exact`` (expectation over it): mean over
    images. ``weighted``: each image times p(true label), Mammoth's (models/ewc_on.py). ``batch`` (true labels) and
    ``batch_argmax``: the square of a batch's mean gradient times the batch's size, FACIL's (src/approach/ewc.py).

    Args:
        logits: weights and images (N, ...) to logits (N, C).
        data: batches of images and columns (N,).
        count: what sums are divided by; 0 = images seen (Mammoth: batches times batch size, a short last batch too).
    """
    total = {n: torch.zeros_like(p) for n, p in weights.items()}
    seen = 0

    def log_p(w: Weights, x: Tensor) -> Tensor:
        return F.log_softmax(logits(w, x.unsqueeze(0)), dim=1)[0]

    def of_label(w: Weights, x: Tensor, column: Tensor) -> Tensor:
        return log_p(w, x).gather(0, column.view(1))[0]

    def of_batch(w: Weights, x: Tensor, column: Tensor) -> Tensor:
        return F.cross_entropy(logits(w, x), column)

    # vmap has no batching rule for fused attention: the plain form is faster here, and the same function
    with sdpa_kernel(SDPBackend.MATH):
        for x, column in data:
            with torch.no_grad():
                p = logits(weights, x).softmax(1)
            if flavour == "exact":
                jacobians = vmap(jacrev(log_p), (None, 0))(weights, x)
                squares = {n: (p.view(*p.shape, *[1] * (j.ndim - 2)) * j**2).sum((0, 1)) for n, j in jacobians.items()}
            elif flavour in ("batch", "batch_argmax"):
                label = column if flavour == "batch" else p.argmax(1)
                squares = {n: len(x) * g**2 for n, g in grad(of_batch)(weights, x, label).items()}
            else:
                if flavour == "sampled":
                    column = torch.multinomial(p.cpu(), 1, generator=generator)[:, 0].to(x.device)
                share = p.gather(1, column[:, None])[:, 0] if flavour == "weighted" else torch.ones_like(p[:, 0])
                found = vmap(grad(of_label), (None, 0, 0))(weights, x, column)
                squares = {n: torch.tensordot(share, g**2, 1) if g.ndim > 1 else (share * g**2).sum()
                           for n, g in found.items()}
            for n, s in squares.items():
                total[n] += s.detach()
            seen += len(x)
    return {n: t / (count or seen) for n, t in total.items()}


class Anchor(nn.Module):
    """Weights theta* and their Fisher F, as buffers in the order of ``names``."""

    def __init__(self, theta: Weights, fisher: Weights) -> None:
        super().__init__()
        self.names = list(theta)
        for k, name in enumerate(self.names):
            self.register_buffer(f"theta{k}", theta[name].detach().clone())
            self.register_buffer(f"fisher{k}", fisher[name].detach().clone())

    def penalty(self, now: Weights) -> Tensor:
        """sum_k F_k (theta_k - theta*_k)^2 over the weights that existed then."""
        parts = []
        for k, name in enumerate(self.names):
            old = getattr(self, f"theta{k}")
            known = now[name][tuple(slice(0, n) for n in old.shape)]
            parts.append((getattr(self, f"fisher{k}") * (known - old) ** 2).sum())
        return torch.stack(parts).sum()

    def blend(self, older: Anchor | None, keep: float, take: float = 1.0) -> None:
        """F <- keep F_older + take F; None: an F of zero."""
        for k, name in enumerate(self.names):
            mine = getattr(self, f"fisher{k}").mul_(take)
            if older is not None and name in older.names:
                old = getattr(older, f"fisher{older.names.index(name)}")
                mine[tuple(slice(0, n) for n in old.shape)] += keep * old

"""TFUP: an unlabelled pool gives each class a few images, whose likeness is added to the text's answer."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench import Backbone
from cl_bench.ranges import Amount, Count, Share, Whole

from ._views import Views

__all__ = ["Tfup"]

MATCH = 10.0  # scale of the probabilities that select and compare; answers have the model's own


class Tfup(Views):
    """Images of a pool that are sure of a class and alike in their answers become its examples; nothing is trained.

    Long et al., "Training-Free Unsupervised Prompt for Vision-Language Models", 2024, arXiv 2404.16339 (wlb12345/TFUP). Of
    the images of highest probability per class, twice as many as are kept, those whose answers differ least from each
    other's (summed divergence). An image's likeness to an example is their cosine times how near their answers are, from 0
    to 2.

    Deviation: the paper's pool is the whole test set before it is answered. Here it is the first ``pool`` images of the
    stream; until they are in, images are answered by text alone, and then the examples stay as they are.

    Args:
        pool: images of a label space that the examples are taken from.
        shots: examples per class; 0 = as published, ``share`` of the pool, between 9 and 16.
        share: of the pool that becomes examples.
        alpha, beta: weight and sharpness of the examples' answer.
    """

    family: ClassVar[str] = "test-time"
    paper: ClassVar[str] = "Long et al. (TFUP), arXiv 2404.16339"

    def __init__(self, backbone: Backbone, *, pool: Count = 128, shots: Whole = 0, share: Share = 0.3, alpha: Amount = 0.3,
                 beta: Amount = 1.0) -> None:  # fmt: skip
        super().__init__(backbone, views=1)
        self.pool, self.shots, self.share, self.alpha, self.beta = pool, shots, share, alpha, beta

    def restart_memory(self) -> None:
        self.waiting: list[Tensor] = []
        self.examples: Tensor | None = None
        self.of = torch.zeros(0, dtype=torch.int64)

    def score(self, f: Tensor, text: Tensor) -> Tensor:
        if self.examples is None:
            self.waiting.append(f[0])
            if len(self.waiting) >= self.pool:
                found = torch.stack(self.waiting)
                chosen = select(found, text, self.shots or published_shots(len(found), len(text), self.share))
                self.examples, self.of, self.waiting = found[chosen.rows], chosen.of, []
        logits = float(self.scale) * f[:1] @ text.T
        if self.examples is not None:
            logits = logits + self.alpha * cached(f[:1], self.examples.to(f), self.of, text, self.beta)
        return logits[0]


class Chosen(NamedTuple):
    """Rows of the pool, class after class, and the class of each; an image may serve several."""

    rows: Tensor
    of: Tensor


def published_shots(pool: int, classes: int, share: float) -> int:
    """``share`` of the pool over the classes, between 9 and 16."""
    return min(16, max(9, int(pool * share / classes)))


def select(pool: Tensor, text: Tensor, shots: int) -> Chosen:
    """Examples of each class from unit features (N, d) and unit texts (C, d), at most ``shots`` of each."""
    p = (MATCH * pool @ text.T).softmax(1)
    rows = []
    for c in range(len(text)):
        sure = p[:, c].argsort(descending=True, stable=True)[: 2 * shots]
        apart = divergence(p[sure], p[sure]).sum(1)
        rows.append(sure[apart.argsort(stable=True)[:shots]])
    return Chosen(torch.cat(rows), torch.cat([torch.full_like(r, c) for c, r in enumerate(rows)]))


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Kullback-Leibler divergence of each row of p (n, C) from each row of q (m, C), (n, m)."""
    return (p * p.log()).sum(1, keepdim=True) - p @ q.log().T


def nearness(f: Tensor, examples: Tensor, text: Tensor) -> Tensor:
    """How near the answers are, from 0 for the farthest example to 2 for the nearest (n, m)."""
    d = divergence((MATCH * f @ text.T).softmax(1), (MATCH * examples @ text.T).softmax(1))
    low, high = d.amin(1, keepdim=True), d.amax(1, keepdim=True)
    return 2 * (1 - (d - low) / (high - low).clamp_min(1e-12))  # the released z-score before it cancels


def cached(f: Tensor, examples: Tensor, of: Tensor, text: Tensor, beta: float) -> Tensor:
    """What the examples say (n, C), before its weight."""
    alike = f @ examples.T * nearness(f, examples, text)
    return torch.exp(-(beta - beta * alike)) @ F.one_hot(of.to(f.device), len(text)).to(f)

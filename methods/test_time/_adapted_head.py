"""A classifier that another network bends, and that network: the two modules of the label shift adapter."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from scipy.special import chdtri
from torch import Tensor, nn

from cl_bench import Head, Rng
from cl_bench.ranges import Size

Parts = tuple[Tensor, Tensor, Tensor, Tensor]  # gamma (d,), beta (d,), dW (d, C), db (C,)


class AdaptedHead(Head):
    """``head`` on h' = gamma h + beta, plus h' dW + db. Identity until :meth:`bend` is called; trains nothing."""

    gamma: Tensor
    beta: Tensor
    shift: Tensor
    bias_shift: Tensor

    def __init__(self, head: Head) -> None:
        super().__init__(head.num_features)
        self.head, self.space = head, head.space
        d, c = head.num_features, len(head.space)
        for name, value in (("gamma", torch.ones(d)), ("beta", torch.zeros(d)), ("shift", torch.zeros(d, c)),
                            ("bias_shift", torch.zeros(c))):  # fmt: skip
            self.register_buffer(name, value.to(next((p.detach() for p in head.parameters()), torch.zeros(()))))

    def bend(self, parts: Parts) -> None:
        """Take what a :class:`Generator` made."""
        self.gamma, self.beta, self.shift, self.bias_shift = parts

    def forward(self, features: Tensor) -> Tensor:
        h = self.gamma * features + self.beta
        return self.head(h) + h @ self.shift + self.bias_shift


class Generator(nn.Module):
    """A degree of imbalance (scalar) to gamma, beta, dW, db; the last layer starts at zero, thus at the identity."""

    def __init__(self, d: int, c: int, hidden: Size, rank: Size, rng: Rng) -> None:
        super().__init__()
        self.d, self.c = d, c
        # Beyond a million entries dW = basis @ coefficients, with a basis that is drawn once.
        self.rank = rank if d * c > 1_000_000 else 0
        draw = rng.on("cpu")
        self.basis = nn.Parameter(torch.randn(d, self.rank, generator=draw) / d**0.5) if self.rank else None
        self.first = nn.utils.skip_init(nn.Linear, 1, hidden)
        self.last = nn.utils.skip_init(nn.Linear, hidden, 2 * d + c + (self.rank or d) * c)
        with torch.no_grad():
            for p in self.first.parameters():
                p.uniform_(-1, 1, generator=draw)  # nn.Linear's own range for one input
            for p in self.last.parameters():
                p.zero_()

    def forward(self, degree: Tensor) -> Parts:
        out = self.last(F.relu(self.first(degree.view(1))))
        gamma, beta, db, dw = out.split([self.d, self.d, self.c, len(out) - 2 * self.d - self.c])
        dw = dw.view(-1, self.c)
        return 1 + gamma, beta, dw if self.basis is None else self.basis @ dw, db


def imbalance(pi: Tensor, prior: Tensor, n: Tensor) -> Tensor | None:
    """The degree of imbalance of a label distribution ``pi`` (C,) beside the source's ``prior`` (C,): 1 at the source's, 0
    at the uniform one, clipped to [-1.5, 1.5].

    None where ``n`` source labels do not tell ``prior`` from the uniform distribution (G-test at 5 %): the span that the
    degree is measured by would be noise.
    """
    log = prior.log()
    at_source = (prior * log).sum()
    if len(prior) < 2 or float(2 * n * (at_source + math.log(len(prior)))) < chdtri(len(prior) - 1, 0.05):
        return None
    return (((pi * log).sum() - log.mean()) / (at_source - log.mean())).clamp(-1.5, 1.5)

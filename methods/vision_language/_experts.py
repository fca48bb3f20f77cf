"""Mixtures of bottlenecks beside a block's MLP, with a router for each experience, and the networks that choose among them."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench import Adapter
from cl_bench.adapters import width_of
from cl_bench.ranges import Share, Size


class Seen:
    """Remembers what a layer was given, for the length of one call."""

    def __init__(self) -> None:
        self.x: Tensor | None = None

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.x = inputs[0]

    def tokens(self) -> Tensor:
        """What it was."""
        assert self.x is not None
        return self.x


class Experts(Adapter):
    """``y = layer(x) + sum of the chosen experts at x'``, x' what enters the block's second norm; the router reads the first
    token of each sequence and chooses ``top``. Router -1 is the plain layer. In a block whose norm comes last (BERT's) x'
    enters its MLP, and the sum is added before that norm.

    Args:
        experts: bottlenecks of width ``r`` (at most that of the tokens), scaled by 0.1 as published.
        dropout: on the bottleneck while ``learning``.
    """

    paper: ClassVar[str] = "Yu et al. (MoE-Adapters), CVPR 2024"
    mergeable: ClassVar[bool] = False
    level: ClassVar[str] = "layer"
    used: Tensor

    def __init__(self, layer: nn.Module, index: int, count: int, experts: Size = 22, r: Size = 64, top: Size = 2,
                 dropout: Share = 0.1) -> None:  # fmt: skip
        super().__init__()
        self.width = width_of(layer)
        inner = min(r, self.width)
        self.top, self.dropout, self.learning, self.router = min(top, experts), dropout, False, -1
        self.down = nn.ModuleList(nn.Linear(self.width, inner) for _ in range(experts))
        self.up = nn.ModuleList(nn.Linear(inner, self.width) for _ in range(experts))
        for d, u in zip(self.down, self.up, strict=True):
            nn.init.kaiming_uniform_(d.weight, a=math.sqrt(5))  # type: ignore[arg-type]
            for zero in (d.bias, u.weight, u.bias):
                nn.init.zeros_(zero)  # type: ignore[arg-type]
        self.gates, self.noise = nn.ParameterList(), nn.ParameterList()
        self.register_buffer("used", torch.zeros(experts))

    def grow(self, like: Tensor) -> None:
        """A router more, which chooses at random but for its noise until it is trained."""
        self.gates.append(nn.Parameter(like.new_zeros(self.width, len(self.down))))
        self.noise.append(nn.Parameter(like.new_zeros(self.width, len(self.down))))
        self.used.zero_()

    def freeze_used(self) -> None:
        """The ``top`` experts that were chosen most stay as they are from now on."""
        for e in self.used.topk(self.top).indices.tolist():
            self.down[e].requires_grad_(False)
            self.up[e].requires_grad_(False)

    def weights(self, first: Tensor) -> Tensor:
        """Weights of the experts (N, E) for first tokens (N, d), ``top`` of them not 0 (Shazeer et al., ICLR 2017)."""
        logits = first @ self.gates[self.router].to(first)
        if self.learning:
            spread = F.softplus(first @ self.noise[self.router].to(first)) + 1e-2
            logits = logits + torch.randn_like(logits) * spread
        best, at = logits.topk(self.top, dim=1)
        return torch.zeros_like(logits).scatter(1, at, best.softmax(1).to(logits))

    def mixture(self, x: Tensor) -> Tensor:
        """Tokens (N, L, d) to what the experts add."""
        weights, out = self.weights(x[:, 0]), torch.zeros_like(x)
        if self.learning:
            self.used += (weights > 0).sum(0).to(self.used)
        for e in weights.detach().sum(0).nonzero().flatten().tolist():
            rows = weights[:, e].nonzero().flatten()
            h = F.dropout(F.relu(self.down[e](x[rows])), self.dropout, self.learning)
            out = out.index_add(0, rows, (0.1 * weights[rows, e, None, None] * self.up[e](h)).to(out))
        return out

    def forward(self, layer: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.router < 0:
            return layer(x, *args, **kwargs)
        seen, post = Seen(), hasattr(layer, "intermediate")  # BERT's block, whose norm comes last
        enters = layer.intermediate if post else layer.ln_2 if hasattr(layer, "ln_2") else layer.norm2
        handles = [enters.register_forward_pre_hook(seen)]  # type: ignore[operator, union-attr]
        if post:
            norm: Any = layer.output
            handles.append(norm.LayerNorm.register_forward_pre_hook(lambda _, given: (given[0] + self.mixture(seen.tokens()),)))
        try:
            y = layer(x, *args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        return y if post else y + self.mixture(seen.tokens())

    @classmethod
    def count(cls, out: int, inp: int, experts: int = 22, r: int = 64, **settings: Any) -> int:
        r = min(r, inp)
        return experts * (2 * inp * r + inp + r)


class Autoencoder(nn.Module):
    """Features (N, d), pressed into (0, 1) by a sigmoid, through ``code`` numbers and back."""

    def __init__(self, width: int, code: int = 100) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(width, code), nn.Linear(code, width)

    def errors(self, features: Tensor) -> Tensor:
        """Mean squared error of each row (N,)."""
        x = features.sigmoid()
        return (self.decoder(F.relu(self.encoder(x))).sigmoid() - x).square().mean(1)

    def learn(self, features: Tensor, iterations: int, batch: int, generator: torch.Generator) -> None:
        """Adam 0.01 with decay 1e-4, a tenth of the rate every ten passes, as published."""
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01, weight_decay=1e-4)
        per_pass, rows = max(1, math.ceil(len(features) / batch)), torch.zeros(0, dtype=torch.int64)
        with torch.enable_grad():
            for step in range(iterations):
                if step % per_pass == 0:
                    rows = torch.randperm(len(features), generator=generator).to(features.device)
                optimizer.param_groups[0]["lr"] = 0.01 * 0.1 ** (step // per_pass // 10)
                at = rows[step % per_pass * batch :][:batch]
                optimizer.zero_grad()
                self.errors(features[at]).mean().backward()
                optimizer.step()

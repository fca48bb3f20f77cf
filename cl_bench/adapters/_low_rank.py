"""A linear layer under low-rank adapters, whose backward pass never forms the dense gradient of its weight.

With ``W' = W + sum_k up_k down_k`` and W frozen, the gradients of the factors are products of the layer's rows with matrices of
rank r. Autograd would first form the gradient of W', (o, i), which costs as much as the whole forward pass, and then reduce it
to them. The answers are the same bits either way; gradients differ in their last ones.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

__all__ = ["LowRankLinear", "pays"]

Factors = list[tuple[int, int, Tensor, Tensor]]  # rows [a, b) of the weight have the update up (b - a, r) @ down (r, i)


def pays(rank: int, out: int, inp: int) -> bool:
    """Whether a weight is large, and its factors small beside it, so that going through them saves anything worth having. It
    depends on shapes alone: the same network always takes the same way."""
    return out * inp >= 2**16 and 8 * rank * (out + inp) <= out * inp


class LowRankLinear(nn.Linear):
    """What a plain linear layer becomes when adapters are attached to its weight."""

    def forward(self, x: Tensor) -> Tensor:
        held: Any = self.parametrizations["weight"] if is_parametrized(self, "weight") else ()
        if not torch.is_grad_enabled() or len(held) != 1 or held.original.requires_grad:
            return F.linear(x, self.weight, self.bias)
        parts: Factors = held[0].low_rank() or []
        rank = sum(down.shape[0] * (b - a) for a, b, down, _ in parts) // self.out_features
        if not parts or not pays(rank, self.out_features, self.in_features):
            return F.linear(x, self.weight, self.bias)
        with torch.no_grad():
            weight = held[0](held.original)
        rows = tuple((a, b) for a, b, _, _ in parts)
        out: Tensor = _Linear.apply(x, weight, self.bias, rows, *(t for _, _, down, up in parts for t in (down, up)))
        return out


class _Linear(torch.autograd.Function):
    """``F.linear(x, weight, bias)``, whose weight is a constant plus the products of the factors."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, rows: tuple[tuple[int, int], ...], *factors: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.rows, *factors = inputs
        ctx.save_for_backward(x, weight, *factors)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *factors = ctx.saved_tensors
        kind = upstream.dtype  # under autocast the layer has answered in half precision
        every, inputs = upstream.reshape(-1, upstream.shape[-1]), x.reshape(-1, x.shape[-1]).to(kind)
        to_x = (upstream @ weight.to(kind)).to(x.dtype) if ctx.needs_input_grad[0] else None
        to_bias = every.sum(0) if ctx.needs_input_grad[2] else None
        found: list[Tensor | None] = []
        for k, (a, b) in enumerate(ctx.rows):
            down, up = factors[2 * k:2 * k + 2]
            mine = every[:, a:b]
            found.append(((mine @ up.to(kind)).T @ inputs).to(down.dtype) if ctx.needs_input_grad[4 + 2 * k] else None)
            found.append((mine.T @ (inputs @ down.to(kind).T)).to(up.dtype) if ctx.needs_input_grad[5 + 2 * k] else None)
        return to_x, None, to_bias, None, *found

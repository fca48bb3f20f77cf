"""Entropy of predictions with what filters ask of it, in one pass over the logits: TENT, EATA, SAR, DeYO, ROID."""

from typing import Any

import torch
from torch import Tensor

from ..declaration import FLOATING, Gradient, operator

__all__ = ["entropy_filter", "entropy_filter_grad"]


@operator()
def entropy_filter_grad(logits: Tensor, entropy: Tensor, logsumexp: Tensor, upstream: Tensor) -> Tensor:
    """The gradient of `entropy_filter`'s entropy: ``-upstream * p * (ln p + H)`` per row, (N, C) in the dtype of `logits`."""
    _check(logits, "entropy_filter_grad")
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_p = logits.to(wide) - logsumexp.unsqueeze(1)
    p = log_p.exp()
    slope = torch.where(p == 0, torch.zeros_like(p), p * (log_p + entropy.unsqueeze(1)))  # x ln x -> 0
    return (slope * -upstream.unsqueeze(1)).to(logits.dtype).contiguous()


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    entropy, confidence, reliable, logsumexp = output
    ctx.save_for_backward(inputs[0], entropy, logsumexp)
    ctx.mark_non_differentiable(confidence, reliable, logsumexp)
    ctx.set_materialize_grads(False)  # no zeros for what nobody differentiates


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, None]:
    if upstream is None:
        return None, None
    logits, entropy, logsumexp = ctx.saved_tensors
    return entropy_filter_grad(logits, entropy, logsumexp, upstream), None


@operator(gradient=Gradient(_keep, _backward))
def entropy_filter(logits: Tensor, margin: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Entropy of a batch of predictions, their confidence, and which of them are reliable.

    Args:
        logits: (N, C), float32, float64, float16 or bfloat16, C >= 1; rows may have any stride.
        margin: E0 in nats: a sample is reliable where its entropy lies below.

    Returns:
        ``entropy`` (N,) in nats, differentiable with respect to `logits` once; ``confidence`` (N,), the largest
        probability; ``reliable`` (N,) bool, entropy < margin; ``logsumexp`` (N,). The floating ones are float32, of float64
        logits float64. Two passes over the logits in all, forward and backward, where the formula in torch takes eleven.

    Raises:
        ValueError: logits of another dtype or number of dimensions, or without classes.
    """
    _check(logits, "entropy_filter")
    wide = torch.promote_types(logits.dtype, torch.float32)
    z = logits.to(wide)
    logsumexp = z.logsumexp(1)
    log_p = z - logsumexp.unsqueeze(1)
    p = log_p.exp()
    entropy = -torch.where(p == 0, torch.zeros_like(p), p * log_p).sum(1)  # x ln x -> 0; NaN stays
    return entropy, p.amax(1), entropy < margin, logsumexp


def _check(logits: Tensor, name: str) -> None:
    if logits.dtype not in FLOATING:
        raise ValueError(f"{name}: logits have dtype {str(logits.dtype).removeprefix('torch.')}; supported are float32, "
                         "float64, float16 and bfloat16.")
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"{name}: logits have shape {list(logits.shape)}; give (images, classes) with at least one class.")

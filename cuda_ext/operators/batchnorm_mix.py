"""Normalisation with a mixture of a layer's own and the batch's statistics: BN_alpha, MEMO, RoTTA."""

from typing import Any

import torch
from torch import Tensor

from ..declaration import FLOATING, Gradient, operator

__all__ = ["batchnorm_mix"]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, _, _, weight, bias, _, eps, _ = inputs
    _, mean, var = output
    ctx.save_for_backward(x, mean, var, weight)
    ctx.eps, ctx.biased = eps, bias is not None
    ctx.mark_non_differentiable(mean, var)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 8
    x, mean, var, weight = ctx.saved_tensors
    wide = mean.dtype
    wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[3], ctx.needs_input_grad[4]]
    to_x, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
        upstream.to(wide).contiguous(memory_format=_format(x)), x.to(wide), weight, mean, var, None, None, False, ctx.eps,
        wanted)
    return (to_x.to(x.dtype) if wanted[0] else None, None, None, to_weight if wanted[1] else None,
            to_bias if wanted[2] else None, None, None, None)


def _format(x: Tensor) -> torch.memory_format:
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


@operator(gradient=Gradient(_keep, _backward))
def batchnorm_mix(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, alpha: float, eps: float,
                  unbiased: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise a batch with ``(1 - alpha)`` of given and ``alpha`` of its own statistics, mean and variance alike::

        m <- mean + alpha * (batch mean - mean),  v <- var + alpha * (batch variance - var)
        out <- (x - m) / sqrt(v + eps) * weight + bias

    Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS 2020. No gradient
    passes the statistics, as in zhangmarvin/memo and TTA-lib; `x`, `weight` and `bias` are differentiable.

    Args:
        x: (N, C, ...), float32, float64, float16 or bfloat16, at least one value per channel.
        mean, var: (C,), of x's dtype, or float32 where that has 16 bits.
        weight, bias: (C,) of the dtype of `mean`, or None.
        alpha: the batch's share.
        eps: added to the variance.
        unbiased: whether the batch's variance divides by one less than the values of a channel; that of one value is 0.

    Returns:
        ``out`` as x, contiguous or channels-last as x is; the mixed ``m`` and ``v`` (C,), without gradient.

    Raises:
        ValueError: for other dtypes, numbers of channels or an empty batch.
    """
    _check(x, mean, var, weight, bias)
    wide, form = x.to(mean.dtype), _format(x)
    # The statistics that torch's fused kernel computes on its way; how it writes a variance of 0 is an inverse of 0.
    _, own, inverse = torch.native_batch_norm(wide, None, None, None, None, True, 0.0, 0.0)
    own_var = torch.where(inverse == 0, 0.0, inverse.square().reciprocal())
    n = x.numel() // x.shape[1]
    own, own_var = own.to(mean.dtype), own_var.to(mean.dtype) * (n / (n - 1) if unbiased and n > 1 else 1.0)
    m, v = mean.lerp(own, alpha), var.lerp(own_var, alpha)
    out, _, _ = torch.native_batch_norm(wide, weight, bias, m, v, False, 0.0, eps)
    return out.to(x.dtype).contiguous(memory_format=form), m, v


def _check(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    if x.dtype not in FLOATING or x.dim() < 2 or not x.numel():
        raise ValueError(f"batchnorm_mix: x is {list(x.shape)} of {str(x.dtype).removeprefix('torch.')}; give (images, "
                         "channels, ...) of float32, float64, float16 or bfloat16 with at least one value.")
    wide = torch.promote_types(x.dtype, torch.float32)
    for name, value in (("mean", mean), ("var", var), ("weight", weight), ("bias", bias)):
        if value is not None and (value.dtype != wide or list(value.shape) != [x.shape[1]]):
            raise ValueError(f"batchnorm_mix: {name} is {list(value.shape)} of {str(value.dtype).removeprefix('torch.')} where "
                             f"[{x.shape[1]}] of {str(wide).removeprefix('torch.')} is needed.")

"""Fisher information and the pull of parameters towards where they mattered: EWC, EATA, PSMT, CMF."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..declaration import check_lists, operator

__all__ = ["anchored_penalty_grad_", "fisher_accumulate_"]


@operator(mutates=("importance",))
def fisher_accumulate_(importance: Sequence[Tensor], gradient: Sequence[Tensor], weight: float) -> None:
    """Add squared gradients to a running diagonal of Fisher information, in place on `importance`::

        importance[i] <- importance[i] + weight * gradient[i] ** 2

    Args:
        importance: float32, float64, float16 or bfloat16 tensors of any shape, changed in place; every element needs memory of
            its own, and tensors of different positions must not share memory.
        gradient: tensors of the same shapes, dtypes and device. May be views of the `importance` of their position.
        weight: how much this batch counts.

    float16 and bfloat16 are computed in float32 and rounded once. Nothing here waits for a GPU.

    Raises:
        ValueError: as `selective_ema_` of lists that do not fit.
        RuntimeError: gradients are being recorded and a tensor requires them, or an element of `importance` shares its memory.
    """
    check_lists("fisher_accumulate_", "importance", importance=importance, gradient=gradient)
    for f, g in zip(importance, gradient, strict=True):
        wide = torch.promote_types(f.dtype, torch.float32)
        f.copy_(f.to(wide) + g.to(wide).square() * weight)


@operator(mutates=("gradient",))
def anchored_penalty_grad_(
    gradient: Sequence[Tensor],
    importance: Sequence[Tensor],
    value: Sequence[Tensor],
    anchor: Sequence[Tensor],
    weight: float,
) -> None:
    """Add the gradient of ``weight * sum(importance * (value - anchor) ** 2)``, in place on `gradient`::

        gradient[i] <- gradient[i] + importance[i] * (value[i] - anchor[i]) * (2 * weight)

    What EWC, EATA and PSMT add to a loss, without a graph, an intermediate tensor or a second pass over the parameters.

    Args:
        gradient: float32, float64, float16 or bfloat16 tensors of any shape, changed in place; every element needs memory of
            its own, and tensors of different positions must not share memory.
        importance, value, anchor: tensors of the same shapes, dtypes and device; may be views of `gradient` of their
            position.
        weight: of the penalty.

    float16 and bfloat16 are computed in float32 and rounded once. Nothing here waits for a GPU.

    Raises:
        ValueError: as `selective_ema_` of lists that do not fit.
        RuntimeError: gradients are being recorded and a tensor requires them, or an element of `gradient` shares its memory.
    """
    check_lists("anchored_penalty_grad_", "gradient", gradient=gradient, importance=importance, value=value, anchor=anchor)
    for g, f, p, a in zip(gradient, importance, value, anchor, strict=True):
        wide = torch.promote_types(g.dtype, torch.float32)
        g.copy_(g.to(wide) + f.to(wide) * (p.to(wide) - a.to(wide)) * (2.0 * weight))

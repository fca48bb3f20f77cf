"""Teachers that follow a student, element by element."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..declaration import check_lists, operator

__all__ = ["selective_ema_"]


@operator(mutates=("target",))
def selective_ema_(
    target: Sequence[Tensor],
    source: Sequence[Tensor],
    mask: Sequence[Tensor] | None,
    momentum: float,
    fill: Sequence[Tensor] | None = None,
) -> None:
    """Masked exponential moving average over lists of tensors, in place on `target`.

    For every position i of the lists and every element e::

        target[i][e] <- keep[i][e]                                              where mask[i][e]
        target[i][e] <- momentum * target[i][e] + (1 - momentum) * source[i][e] elsewhere

    where ``keep`` is `fill`, or the old value of `target` if `fill` is None. The teacher of PSMT (Tian & Lyu,
    "Parameter-Selective Continual Test-Time Adaptation", ACCV 2024) as the paper writes it preserves important parameters:
    ``selective_ema_(teacher, student, important, 0.999)``. As the official code (JiaxuTian/PSMT) computes it, masked elements
    become the student's: ``selective_ema_(teacher, student, mask, 0.999, fill=student)``. Restoring masked elements of the
    student to the source model, which CoTTA does at random, is
    ``selective_ema_(student, student, mask, 1.0, fill=source_model)``. A plain mean teacher has no mask:
    ``selective_ema_(teacher, student, None, 0.999)``.

    Args:
        target: float32, float64, float16 or bfloat16 tensors of any shape, changed in place. Every element needs memory of
            its own (no expanded tensors), and tensors of different positions must not share memory.
        source: tensors of the same shapes, dtypes and device. May be `target`, or views of it: `source` and `fill` of a
            position are read as if before `target` is written.
        mask: bool tensors of the same shapes and device; None masks nothing.
        momentum: the share of the old value, in [0, 1]; 1 keeps it.
        fill: what masked elements become (same shapes, dtypes and device as `target`); None keeps their old value.

    float16 and bfloat16 are computed in float32 and rounded once. Nothing here waits for a GPU.

    Raises:
        ValueError: lists of different lengths; a shape, dtype or device that differs within a position; tensors on several
            devices; an unsupported dtype; a momentum outside [0, 1]; a filling without a mask.
        RuntimeError: gradients are being recorded and a tensor requires them (the operator is not differentiable: call it
            under ``torch.no_grad()``), or an element of `target` shares its memory with another one.
    """
    masked = None if mask is None else (mask, torch.bool)
    check_lists("selective_ema_", "target", target=target, source=source, mask=masked, fill=fill)
    if not 0.0 <= momentum <= 1.0:  # also true for NaN
        raise ValueError(f"selective_ema_: momentum is {momentum:g}; give a number from 0 to 1.")
    if mask is None and fill is not None:
        raise ValueError("selective_ema_: fill is given without a mask, which says where to fill.")
    for i, (t, s) in enumerate(zip(target, source, strict=True)):
        wide = torch.promote_types(t.dtype, torch.float32)
        # Two products and a sum, each rounded: a fused multiply-add would round once and differ between machines.
        average = (t.to(wide) * momentum + s.to(wide) * (1.0 - momentum)).to(t.dtype)
        t.copy_(average if mask is None else torch.where(mask[i], t if fill is None else fill[i], average))

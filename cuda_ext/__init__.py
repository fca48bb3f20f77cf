"""Native operators of cl-bench, each beside its definition in plain torch.

Importing this package compiles nothing, reads no environment variable and cannot fail for want of a compiler. It defines the
operators ``torch.ops.cl_bench.*`` with the plain-torch definitions of `reference.py` as their kernel for every device. At the
first call of any operator, compiled kernels that fit this machine and this torch are added where they are already built;
they then answer for their device, and results stay the same bit for bit.

==================  ====================================================================================================
``CL_BENCH_OPS``    what happens at the first call
==================  ====================================================================================================
unset, ``auto``     compiled kernels that are already built are used; nothing is ever compiled
``native``          kernels that are missing are compiled first; without a compiler one warning, then the reference
``reference``       the plain-torch definitions only
==================  ====================================================================================================

To add an operator: its definition in `reference.py`, its schema and fake kernel in `registration.py`, its kernels in
``csrc/cpu`` and ``csrc/cuda``, and its row in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .native import backend, build
from .registration import register

__all__ = ["backend", "build", "selective_ema_"]

register()


def selective_ema_(
    target: Sequence[Tensor],
    source: Sequence[Tensor],
    mask: Sequence[Tensor],
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
    student to the source model is ``selective_ema_(student, student, mask, 1.0, fill=source_model)``.

    Args:
        target: float32, float64, float16 or bfloat16 tensors of any shape, changed in place. Every element needs memory of
            its own (no expanded tensors), and tensors of different positions must not share memory.
        source: tensors of the same shapes, dtypes and device. May be `target`, or views of it: `source` and `fill` of a
            position are read as if before `target` is written.
        mask: bool tensors of the same shapes and device.
        momentum: the share of the old value, in [0, 1]; 1 keeps it.
        fill: what masked elements become (same shapes, dtypes and device as `target`); None keeps their old value.

    float16 and bfloat16 are computed in float32 and rounded once. Nothing here waits for a GPU.

    Raises:
        ValueError: lists of different lengths; a shape, dtype or device that differs within a position; tensors on several
            devices; an unsupported dtype; a momentum outside [0, 1].
        RuntimeError: gradients are being recorded and a tensor requires them (the operator is not differentiable: call it
            under ``torch.no_grad()``), or an element of `target` shares its memory with another one.
    """
    torch.ops.cl_bench.selective_ema_(
        list(target), list(source), list(mask), float(momentum), None if fill is None else list(fill)
    )

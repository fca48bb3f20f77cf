"""What each operator computes, in plain torch: the definition that compiled kernels must reproduce bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_selective_ema(
    target: Sequence[Tensor],
    source: Sequence[Tensor],
    mask: Sequence[Tensor],
    momentum: float,
    fill: Sequence[Tensor] | None = None,
) -> None:
    """Refuse arguments that `selective_ema_` cannot take (ValueError). `csrc/ops.cpp` says the same sentences."""
    others = {"source": source, "mask": mask} | ({} if fill is None else {"fill": fill})
    for name, tensors in others.items():
        if len(tensors) != len(target):
            raise ValueError(
                f"selective_ema_: target holds {len(target)} tensors but {name} holds {len(tensors)}; "
                "give lists of one length."
            )
    if not 0.0 <= momentum <= 1.0:  # also true for NaN
        raise ValueError(f"selective_ema_: momentum is {momentum:g}; give a number from 0 to 1.")
    for i, t in enumerate(target):
        if t.dtype not in FLOATING:
            raise ValueError(
                f"selective_ema_: target[{i}] has dtype {_name(t.dtype)}; supported are float32, float64, float16 and "
                "bfloat16."
            )
        if t.device != target[0].device:
            raise ValueError(
                f"selective_ema_: target[{i}] is on {t.device} but target[0] is on {target[0].device}; "
                "put all tensors on one device."
            )
        for name, tensors in others.items():
            other = tensors[i]
            dtype = torch.bool if name == "mask" else t.dtype
            if other.dtype != dtype:
                raise ValueError(
                    f"selective_ema_: {name}[{i}] has dtype {_name(other.dtype)} where {_name(dtype)} is needed."
                )
            if other.shape != t.shape:
                raise ValueError(
                    f"selective_ema_: {name}[{i}] has shape {list(other.shape)} but target[{i}] has shape {list(t.shape)}."
                )
            if other.device != t.device:
                raise ValueError(
                    f"selective_ema_: {name}[{i}] is on {other.device} but target[{i}] is on {t.device}; "
                    "put all tensors on one device."
                )


def selective_ema_(
    target: Sequence[Tensor],
    source: Sequence[Tensor],
    mask: Sequence[Tensor],
    momentum: float,
    fill: Sequence[Tensor] | None = None,
) -> None:
    """The definition of `cl_bench_ops.selective_ema_`, which holds the full description."""
    check_selective_ema(target, source, mask, momentum, fill)
    for t, s, m, keep in zip(target, source, mask, target if fill is None else fill, strict=True):
        wide = torch.promote_types(t.dtype, torch.float32)
        # Two products and a sum, each rounded: a fused multiply-add would round once and differ between machines.
        average = t.to(wide) * momentum + s.to(wide) * (1.0 - momentum)
        t.copy_(torch.where(m, keep, average.to(t.dtype)))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

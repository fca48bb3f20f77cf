"""The two halves of a sharpness-aware step (Foret et al., ICLR 2021): climb to the worst near point, come back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["ascend_", "put_back_"]


@torch.no_grad()
def ascend_(params: Sequence[nn.Parameter], rho: float) -> list[Tensor]:
    """theta <- theta + rho g / (||g|| + 1e-12), the norm over all of ``params`` together; returns the old values."""
    old = [p.detach().clone() for p in params]
    grads = [p.grad for p in params if p.grad is not None]
    scale = rho / (torch.nn.utils.get_total_norm(grads) + 1e-12)
    for p in params:
        if p.grad is not None:
            p.addcmul_(p.grad, scale.to(p))
    return old


@torch.no_grad()
def put_back_(params: Sequence[nn.Parameter], old: Sequence[Tensor]) -> None:
    """Undo :func:`ascend_`; gradients stay."""
    for p, value in zip(params, old, strict=True):
        p.copy_(value)

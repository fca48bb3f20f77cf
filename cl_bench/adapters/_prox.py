"""The proximal step of the L1 norm."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["shrink"]


@torch.no_grad()
def shrink(gate: Tensor, threshold: float, released: bool = False) -> None:
    """Soft-threshold ``gate`` in place: ``sign(w) max(|w| - k, 0)``.

    ``released`` repeats what the authors' three in-place statements do: everything below ``2 k`` becomes zero.
    """
    zone = 2 * threshold if released else threshold
    gate.copy_(torch.where(gate.abs() > zone, gate - gate.sign() * threshold, torch.zeros_like(gate)))

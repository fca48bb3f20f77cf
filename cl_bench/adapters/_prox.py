"""The proximal step of the L1 norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["shrink", "soft_threshold"]


def soft_threshold(v: Tensor, width: Tensor | float) -> Tensor:
    """``sign(v) max(|v| - width, 0)``."""
    return F.relu(v - width) - F.relu(-v - width)


@torch.no_grad()
def shrink(gate: Tensor, threshold: float, released: bool = False) -> None:
    """Soft-threshold ``gate`` in place: ``sign(w) max(|w| - k, 0)``.

    ``released`` repeats what the authors' three in-place statements do: everything below ``2 k`` becomes zero.
    """
    moved = soft_threshold(gate, threshold)
    gate.copy_(torch.where(gate.abs() > 2 * threshold, moved, torch.zeros_like(gate)) if released else moved)

"""Mean teachers and the restore of weights towards the source."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..rng import Rng

__all__ = ["ema_", "stochastic_restore_", "teacher_of"]


def teacher_of(model: nn.Module) -> nn.Module:
    """A frozen copy of a configured model, in evaluation mode; also used for anchors that never move."""
    twin = copy.deepcopy(model)
    twin.eval()
    twin.requires_grad_(False)
    return twin


@torch.no_grad()
def ema_(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student over all parameters; buffers stay."""
    old, new = list(teacher.parameters()), list(student.parameters())
    if old:
        torch._foreach_mul_(old, momentum)
        torch._foreach_add_(old, new, alpha=1 - momentum)


@torch.no_grad()
def stochastic_restore_(params: Sequence[Tensor], source: Sequence[Tensor], rate: float, rng: Rng) -> None:
    """Set each element back to ``source`` with probability ``rate`` (CoTTA)."""
    if rate <= 0:
        return
    for p, s in zip(params, source, strict=True):
        back = torch.rand(p.shape, generator=rng.on(p.device), device=p.device) < rate
        p.copy_(torch.where(back, s, p))

"""Mean teachers and the restore of weights towards the source."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..rng import Rng
from .augmentation import augment, draw_augmentations, pixel_chunk
from .base import Deployed
from .norm import grouped

__all__ = ["augmented_outputs", "ema_", "stochastic_restore_", "teacher_of"]


def teacher_of(model: Deployed) -> Deployed:
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


@torch.no_grad()
def augmented_outputs(model: nn.Module, x: Tensor, views: int, rng: Rng) -> Tensor:
    """Logits (views, N, C) of ``model`` on ``views`` CoTTA augmentations of the batch.

    As many views as fit go through the network together; in BATCH mode each is still normalised by its own statistics.
    """
    out = []
    for draws in draw_augmentations(views, rng, x.shape[-1]).split(pixel_chunk(x, views)):
        with grouped(model, len(draws)):
            out.append(model(augment(x, rng, draws)).unflatten(0, (len(draws), -1)))
    return torch.cat(out)

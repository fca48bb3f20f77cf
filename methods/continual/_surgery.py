"""MOS's two ideas as functions: drawing an adapter to the earlier ones, and looking up which adapter an image needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def merged(now: Tensor, earlier: Tensor, momentum: float, times: int = 1) -> Tensor:
    """``(1 - momentum) now + momentum earlier``, ``times`` over."""
    for _ in range(times):
        now = (1 - momentum) * now + momentum * earlier
    return now


def look_up(near: Tensor, heads: Tensor, task_of: Tensor, lookups: int) -> tuple[Tensor, Tensor]:
    """Which adapter answers for each image, and the adapters tried (N, lookups), -1 after the last.

    Prototype logits ``near`` (N, C) name a class and so the first adapter; the head's logits under it, ``heads`` (T, N, C),
    name a class again, until the task stays. The first adapter counts as a look-up (models/mos.py, _eval_cnn): there are at
    most ``lookups - 1`` switches, and at the limit the last adapter tried answers.
    """
    rows = torch.arange(len(near), device=near.device)
    chosen = task_of[near.argmax(1)]
    tried = torch.full((len(near), lookups), -1, dtype=torch.int64, device=near.device)
    tried[:, 0] = chosen
    for k in range(1, lookups):
        again = task_of[heads[chosen, rows].argmax(1)]
        moved = again != chosen
        if not bool(moved.any()):
            break
        tried[moved, k] = again[moved]
        chosen = again
    return chosen, tried


def score(near: Tensor, answer: Tensor, tasks: int, ensemble: bool = True) -> Tensor:
    """softmax(answer) + softmax(tasks * near), both (N, C); without the ensemble the answer alone."""
    return answer.softmax(1) + (tasks * near).softmax(1) if ensemble else answer


def mean_of(banks: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Mean over adapters of each parameter."""
    return [torch.stack(list(parts)).mean(0) for parts in zip(*banks, strict=True)]

"""The processes that one run is shared among: which one this is, and what one of them holds of a batch and all of them do.

Without a process group there is one process, and everything is as it is.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

__all__ = ["gathered", "rank", "share", "size", "summed", "whole"]


def _on() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _on() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _on() else 1


def share(rows: Tensor) -> Tensor:
    """Of rows (n, ...) that every process holds, those that are this one's: every ``size()``-th."""
    return rows if size() == 1 else rows[rank()::size()].contiguous()


def whole(rows: Tensor) -> Tensor:
    """The inverse of :func:`share`: the rows (n, ...) of all processes in their order, the same in each."""
    if size() == 1:
        return rows
    parts = gathered(rows.detach().cpu())
    out = rows.new_empty(sum(map(len, parts)), *rows.shape[1:])
    for k, part in enumerate(parts):
        out[k::size()] = part.to(rows.device)
    return out


def gathered(value: Any) -> list[Any]:
    """The ``value`` of every process, in the order of their numbers; it must be picklable."""
    if size() == 1:
        return [value]
    out: list[Any] = [None] * size()
    dist.all_gather_object(out, value)
    return out


def summed(values: list[float]) -> list[float]:
    """Sums over the processes, the same in each."""
    return [sum(column) for column in zip(*gathered([float(v) for v in values]), strict=True)] if values else []

"""A trunk that is split among the processes of a run while it learns: torch's ``fully_shard`` (FSDP2) beside Lightning's DDP.

Of the trunk's parameters each process holds its part, and so of their gradients and optimizer states; the layers of a
block are gathered where images pass it (Zhao et al., "PyTorch FSDP", 2023). Heads, prompts and adapters that the method
holds itself stay whole and are averaged by DDP. Between two fits everything is whole again: ``begin``, ``end`` and
measuring see what they see in one process.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .. import ranks
from ..errors import UserError
from ..method import Method
from ..state import leaves, modules

__all__ = ["split_trunk"]


@contextmanager
def split_trunk(method: Method, device: torch.device) -> Iterator[None]:
    """For one fit, put a split twin in the place of the trunk of ``method``; afterwards the trunk holds what the twin learned.

    The method's own references stay right: the trunk keeps its parameters, emptied for the time, and what of it the method
    also holds elsewhere is the same in both and whole.

    Raises:
        UserError: where the method computes with single weights of the trunk, which are not whole here.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    trunk, held = method.backbone.model, _held_elsewhere(method)
    own: dict[int, Any] = {id(t): t for t in leaves(trunk)}
    hooks = [h for m in trunk.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    twin = copy.deepcopy(trunk, {**own, **{id(x): x for x in [*held, *hooks]}})
    whole = {x for x in held if isinstance(x, nn.Parameter)}
    mesh = init_device_mesh(device.type, (ranks.size(),))
    parts = [m for name, m in twin.named_modules() if re.fullmatch(method.backbone.splits, name) and m not in held]
    for part in [*reversed(parts), twin]:
        fully_shard(part, mesh=mesh, ignored_params=whole)
    names = [name for name, p in twin.named_parameters() if isinstance(p, DTensor)]
    emptied = dict(trunk.named_parameters())
    for name in names:
        emptied[name].data = emptied[name].data.new_empty(0)
    method.backbone.model = twin
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(method, [f"backbone.model.{name}" for name in names])
    try:
        yield
    except (RuntimeError, NotImplementedError) as fault:
        if "DTensor" not in str(fault) and "sharding strategy" not in str(fault):
            raise
        raise UserError(f"{type(method).__name__} computes with single weights of the trunk, which no process holds whole "
                        "under --strategy fsdp; run it with --strategy ddp.") from fault
    learned = dict(twin.named_parameters())
    for name in names:
        emptied[name].data = learned[name].full_tensor().detach()
    for old, new in zip(trunk.modules(), twin.modules(), strict=True):
        old._buffers.update(new._buffers)
    method.backbone.model = trunk
    method.__dict__.pop("_ddp_params_and_buffers_to_ignore", None)
    for module in (x for x in held if isinstance(x, nn.Module)):
        for mark in ("_is_fsdp_managed_module", "_fsdp_use_orig_params"):  # torch's, for its compiler
            module.__dict__.pop(mark, None)


def _held_elsewhere(method: Method) -> set[Tensor | nn.Module]:
    """Parameters and modules that the method reaches by another way than through its trunk."""
    trunk, backbone = method.backbone.model, method.backbone
    backbone.model = nn.Identity()
    try:
        return {x for x in [*leaves(method), *modules(method)] if isinstance(x, (nn.Parameter, nn.Module))}
    finally:
        backbone.model = trunk

"""Fused kernels under the optimizers that methods build: torch's own, or NVIDIA apex's where it is installed.

The package named ``apex`` on the Python package index is a different program, so only the class ``apex.optimizers.FusedAdam``
says that NVIDIA's is here.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from ..errors import UserError

__all__ = ["apex_adam", "check_optimizers", "fuse"]

_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)


def apex_adam() -> type[torch.optim.Optimizer] | None:
    """``apex.optimizers.FusedAdam``, or None where NVIDIA apex is not installed."""
    try:
        found = importlib.import_module("apex.optimizers").FusedAdam
    except (ImportError, AttributeError):
        return None
    return found if isinstance(found, type) and issubclass(found, torch.optim.Optimizer) else None


def check_optimizers(kind: str, device: torch.device) -> None:
    """Refuse, before any work, what this machine has not.

    Raises:
        UserError: for ``apex`` without NVIDIA apex, or without a GPU.
    """
    if kind != "apex":
        return
    if apex_adam() is None:
        raise UserError("NVIDIA apex is not installed: apex.optimizers.FusedAdam was not found (the package named apex on the "
                        "Python package index is another program); build it from NVIDIA's sources, or use --optimizers fused.")
    if device.type != "cuda":
        raise UserError("NVIDIA apex's optimizers need a GPU; use --optimizers fused, or torch.")


def fuse(optimizer: Any, kind: str) -> Any:
    """``optimizer`` with fused kernels; whatever has none comes back as it is.

    ``fused`` turns on torch's fused kernels of Adam, AdamW and SGD. ``apex`` returns an ``apex.optimizers.FusedAdam`` in
    place of Adam or AdamW (not AMSGrad, which apex lacks). It takes the parameter groups over as they are, so a learning-rate
    schedule that holds the old optimizer goes on steering the new one.
    """
    plain = type(optimizer) in _FUSED and all(p.is_floating_point() for g in optimizer.param_groups for p in g["params"])
    if kind == "torch" or not plain:
        return optimizer
    if kind == "fused":
        for group in optimizer.param_groups:
            if not group.get("differentiable"):
                group.update(fused=True, foreach=False)
        return optimizer
    adam = apex_adam()
    if adam is None or isinstance(optimizer, torch.optim.SGD) or any(g.get("amsgrad") for g in optimizer.param_groups):
        return optimizer
    decoupled = isinstance(optimizer, torch.optim.AdamW) or bool(optimizer.defaults.get("decoupled_weight_decay"))
    optimizer._opt_called = True  # or its schedule would warn that it steps without its optimizer
    return adam(optimizer.param_groups, adam_w_mode=decoupled)  # type: ignore[call-arg]

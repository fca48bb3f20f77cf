"""How the trunk that a run computes with and its images lie in memory, and whether it is compiled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import Backbone
from ..method import Method
from ..state import modules, parts
from .compute import Compute
from .meter import Meter

__all__ = ["arrange", "relaid", "with_layout"]


def with_layout(compute: Compute, backbone: Backbone) -> Compute:
    """``compute`` with the layout that ``auto`` stands for on this trunk."""
    if compute.layout != "auto" or not isinstance(backbone, Backbone):
        return compute
    convolved = sum(m.weight.numel() for m in backbone.model.modules() if isinstance(m, nn.Conv2d))
    most = 2 * convolved > sum(p.numel() for p in backbone.model.parameters())
    return replace(compute, layout="images_last" if most and backbone.any_layout else "contiguous")


def arrange(method: Method, compute: Compute, meter: Meter) -> None:
    """Lay a freshly built method out and compile its trunk as ``compute`` asks for."""
    if compute.layout in ("images_last", "channels_last"):
        for module in modules(method):
            if isinstance(module, Backbone):
                module.channels_last = True
    if compute.layout == "channels_last":
        relaid(method)
    if compute.compile:
        meter.outside_of_graphs()
        method.backbone.model.compile()


def relaid(value: Any) -> None:
    """The weights of all 2-d convolutions in ``value`` with their channels beside each other, and what optimizers in it keep of
    a weight as the weight lies. A convolution hands the layout of its weight on to its output, so the images follow."""
    for module in modules(value):
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            for weight in module.parameters(recurse=False):
                if weight.ndim == 4:
                    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    for optimizer in _optimizers(value):
        for weight, kept in optimizer.state.items():
            if isinstance(weight, Tensor) and weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
                kept.update({k: v.contiguous(memory_format=torch.channels_last) for k, v in kept.items()
                             if isinstance(v, Tensor) and v.shape == weight.shape})


def _optimizers(value: Any) -> list[torch.optim.Optimizer]:
    found, stack, seen = [], [value], set()
    while stack:
        here = stack.pop()
        if id(here) in seen or isinstance(here, Tensor):
            continue
        seen.add(id(here))
        if isinstance(here, torch.optim.Optimizer):
            found.append(here)
        else:
            stack.extend(parts(here))
    return found

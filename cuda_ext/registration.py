"""The operators as torch sees them: schema, plain-torch kernel, fake kernel, behaviour under autograd.

The schemas live here, not in C++: an operator must exist on a machine without a compiler too, and the dispatcher takes a schema
once. Compiled libraries therefore only add kernels for their device (``TORCH_LIBRARY_IMPL``), which take precedence over the
plain-torch kernel that every device starts with.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference
from .native import add_kernels

SELECTIVE_EMA = "(Tensor(a!)[] target, Tensor[] source, Tensor[] mask, float momentum, Tensor[]? fill=None) -> ()"


def register() -> None:
    """Define the operators; a second call (this package imported again, or under another name) changes nothing."""
    if hasattr(torch.ops.cl_bench, "selective_ema_"):
        return
    name = "cl_bench::selective_ema_"
    torch.library.define(name, SELECTIVE_EMA, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(name, "CompositeExplicitAutograd", _selective_ema)
    torch.library.register_fake(name, reference.check_selective_ema)
    torch.library.impl(name, "Autograd", _selective_ema_autograd)
    torch.library.impl(name, "ADInplaceOrView", _selective_ema_inplace)


def _selective_ema(
    target: Sequence[Tensor],
    source: Sequence[Tensor],
    mask: Sequence[Tensor],
    momentum: float,
    fill: Sequence[Tensor] | None = None,
) -> None:
    # The first call of a process lands here whichever way it came (Python, torch.ops, a compiled graph).
    if add_kernels():
        torch.ops.cl_bench.selective_ema_(target, source, mask, momentum, fill)
    else:
        reference.selective_ema_(target, source, mask, momentum, fill)


def _selective_ema_autograd(
    target: Sequence[Tensor],
    source: Sequence[Tensor],
    mask: Sequence[Tensor],
    momentum: float,
    fill: Sequence[Tensor] | None = None,
) -> None:
    if torch.is_grad_enabled():
        for name, tensors in (("target", target), ("source", source), ("fill", fill or ())):
            for i, tensor in enumerate(tensors):
                if tensor.requires_grad:
                    raise RuntimeError(
                        f"selective_ema_ is not differentiable, but {name}[{i}] requires grad and gradients are being "
                        "recorded; call it under torch.no_grad()."
                    )
    with torch._C._AutoDispatchBelowAutograd():
        torch.ops.cl_bench.selective_ema_(target, source, mask, momentum, fill)


def _selective_ema_inplace(
    target: Sequence[Tensor],
    source: Sequence[Tensor],
    mask: Sequence[Tensor],
    momentum: float,
    fill: Sequence[Tensor] | None = None,
) -> None:
    with torch._C._AutoDispatchBelowADInplaceOrView():
        torch.ops.cl_bench.selective_ema_(target, source, mask, momentum, fill)
    # Autograd must notice that tensors it saved for a backward pass have changed.
    for tensor in target:
        if not tensor.is_inference():
            torch.autograd.graph.increment_version(tensor)

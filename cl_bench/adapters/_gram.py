"""Second moments of what flows into layers, for kinds and methods that start from data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ._attach import _match, layer_names, trunk_of

__all__ = ["input_grams", "moments_of", "rows_of"]


def rows_of(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer's input as rows (n, i) that its flattened weight (o, i) multiplies; convolutions unfold patches."""
    if isinstance(layer, nn.Conv2d):
        if layer.groups != 1:
            raise UserError("input statistics of grouped convolutions are not defined; match other layers.")
        if isinstance(layer.padding, str):
            raise UserError("input statistics of a convolution need numeric padding; match other layers.")
        patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        return patches.transpose(1, 2).flatten(0, 1)
    return x.flatten(0, -2)


class _Collector:
    def __init__(self, name: str, into: dict[str, list[Any]], images: int | None) -> None:
        self.name, self.into, self.images = name, into, images

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = inputs[0] if inputs else kwargs["query"]
        rows = rows_of(layer, x.detach()[: self.images]).double()
        entry = self.into.setdefault(self.name, [0.0, 0])
        entry[0] = entry[0] + rows.T @ rows
        entry[1] += len(rows)


@contextmanager
def moments_of(layers: Mapping[str, nn.Module], images: Mapping[str, int] | None = None) -> Iterator[dict[str, list[Any]]]:
    """Inside, what flows into the layers is summed: by name [sum of x x^T float64 (i, i), how many rows]; a layer that is
    never called as a module has no entry. ``images``: of how many items of each batch a layer's inputs are taken."""
    found: dict[str, list[Any]] = {}
    hooks = [layer.register_forward_pre_hook(_Collector(name, found, images[name] if images else None), with_kwargs=True)
             for name, layer in layers.items()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def input_grams(backbone: nn.Module, at: str, images: Iterable[Tensor], *, mean: bool = True) -> dict[str, Tensor]:
    """Per matched layer ``X^T X`` (i, i) in float64 over all inputs' rows; divided by their number if ``mean``.

    The pass runs in eval mode and restores the modes.

    Args:
        backbone: what is called on each item of ``images`` (its ``forward_features`` where it has one).
        at: anchored pattern of layer names, as in :func:`attach`.
        images: batches (N, 3, H, W) in [0, 1].

    Raises:
        UserError: if a matched layer is never called (``out_proj`` of ``nn.MultiheadAttention``), or none matches.
    """
    names, trunk = layer_names(backbone), trunk_of(backbone)
    matched = _match(at, names)
    modes = [(m, m.training) for m in backbone.modules()]
    call = getattr(backbone, "forward_features", backbone)
    backbone.eval()
    try:
        with moments_of({n: trunk.get_submodule(names[n]) for n in matched}) as found:
            for x in images:
                call(x)
    finally:
        for module, mode in modes:
            module.training = mode
    if silent := [n for n in matched if n not in found]:
        raise UserError(f"{silent[0]} is never called as a layer, so its inputs cannot be seen; leave it out of at.")
    return {n: (g / max(k, 1) if mean else g) for n, (g, k) in found.items()}

"""What gradient-projection methods share: the layers they protect, those layers' inputs, and bases of their span.

A gradient of a layer ``y = W x`` is a sum of outer products with its inputs: rows of the gradient lie in the inputs'
span, so a row kept out of the span of old inputs leaves old outputs as they were (Saha et al., ICLR 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from cl_bench import Backbone, Batch, LabelSpace, Method
from cl_bench.adapters import moments_of


def matrix_layers(backbone: Backbone) -> tuple[str, ...]:
    """Names in the backbone of its trunk's linear layers and ungrouped convolutions."""
    return tuple(
        name
        for name, layer in backbone.named_modules()
        if name.startswith("model")
        and (isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1))
    )


class Features(nn.Module):
    """``forward_features`` as a forward, for functional calls with other weights (``backbone.<name>``)."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone.forward_features(x)


@torch.no_grad()
def input_grams(
    method: Method, names: Iterable[str], run: Callable[[Tensor], Tensor], data: Iterable[Batch],
    images: dict[str, int] | None = None,
) -> dict[str, Tensor]:
    """sum over inputs of x x^T while ``run`` sees ``data``, float64 (d_in, d_in) per layer.

    Its eigenvectors are the inputs' left singular vectors, its eigenvalues their squared singular values. A layer that is
    never called as a module (``out_proj`` of torch's own attention) has no entry. In evaluation mode; hooks live only for
    the call. ``images``: of how many images of each batch a layer's inputs are taken.
    """
    was = method.training
    method.eval()
    try:
        with moments_of({name: method.backbone.get_submodule(name) for name in names}, images) as found:
            for batch in data:
                run(batch.x)
    finally:
        method.train(was)
    return {name: total for name, (total, _) in found.items()}


def weight_gradients(method: Method, names: Iterable[str], batch: Batch) -> list[Tensor]:
    """Gradient of the loss among the current classes on one batch, (out, d_in) per layer, in evaluation mode."""
    was = method.training
    method.eval()
    with torch.enable_grad():
        weights = [method.backbone.get_submodule(name).weight for name in names]
        found = torch.autograd.grad(method.loss(method(batch.x), batch.y, method.current), weights)
    method.train(was)
    return [g.flatten(1) for g in found]


def first_directions(gram: Tensor, threshold: float) -> Tensor:
    """A first task's directions (d, k) as released: as many as have a cumulative share of the energy strictly below
    ``threshold``, which is one fewer than hold it, and can be none (GPM's update_GPM: ``#+1`` is commented out)."""
    total, energy, vectors = _residual(gram, gram.new_zeros(len(gram), 0))
    return vectors[:, : int((energy.cumsum(0) / total < threshold).sum())]


def new_directions(gram: Tensor, basis: Tensor, threshold: float) -> Tensor:
    """The fewest orthonormal directions (d, k) outside ``basis`` (d, m) with which the span keeps ``threshold`` of the
    inputs' energy tr(gram)."""
    total, outside, vectors = _residual(gram, basis)
    missing = threshold * total - (total - outside.sum())
    if missing <= 0:
        return vectors[:, :0]
    enough = int(torch.searchsorted(outside.cumsum(0), missing)) + 1
    return vectors[:, : min(enough, gram.shape[0] - basis.shape[1])]


def own_directions(gram: Tensor, basis: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """A task's own subspace among all directions: (columns of ``basis`` (m',), new directions (d, k)), the fewest of old
    and new together, ranked by energy, that keep ``threshold`` of it. Bases of tasks may so share directions."""
    total, outside, vectors = _residual(gram, basis)
    room = gram.shape[0] - basis.shape[1]
    inside = ((gram @ basis) * basis).sum(0)
    energy = torch.cat([inside, outside[:room]])
    order = energy.argsort(descending=True, stable=True)
    enough = int(torch.searchsorted(energy[order].cumsum(0), threshold * total)) + 1
    chosen = order[:enough].sort().values
    m = basis.shape[1]
    return chosen[chosen < m], vectors[:, chosen[chosen >= m] - m]


def _residual(gram: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """tr(gram), and eigenvalues (descending) and eigenvectors of the part outside ``basis``, kept orthogonal to it."""
    away = torch.eye(len(gram), dtype=gram.dtype, device=gram.device) - basis @ basis.T
    values, vectors = torch.linalg.eigh(away @ gram @ away)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    return gram.trace(), values, vectors


def orthonormal(basis: Tensor, more: Tensor) -> Tensor:
    """``basis`` (d, m) with ``more`` (d, k) appended, orthonormal to rounding; earlier columns stay as they are."""
    if not more.shape[1]:
        return basis
    for _ in range(2):  # twice is enough (Kahan): the second pass removes what rounding left of the first
        more = more - basis @ (basis.T @ more)
        more = torch.linalg.qr(more).Q
    return torch.cat([basis, more], dim=1)


def task_of(space: LabelSpace, tasks: list[LabelSpace]) -> int:
    """Which task is asked for, by its classes: how a multi-head method learns the task that a task-incremental scenario
    reveals. Before any task is learned, or for classes that none of them had, the latest one."""
    asked = set(space.ids)
    for k, task in enumerate(tasks):
        if asked <= set(task.ids):
            return k
    return len(tasks) - 1

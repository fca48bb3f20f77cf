"""Saha, Garg and Roy, "Gradient Projection Memory for Continual Learning", ICLR 2021 (sahagobinda/GPM).

Weights move only in directions that no old input has: gradients lose their part in the span of the old tasks' inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from cl_bench import Backbone, Batch, Experience, LabelSpace, Method, UserError, batches
from cl_bench.ranges import Amount, Count, Share, Whole

from .._differs import Differs
from ._subspace import first_directions, input_grams, matrix_layers, new_directions, orthonormal

__all__ = ["Gpm"]


class Gpm(Method):
    """Gradient Projection Memory: orthogonal gradient descent against the inputs of old tasks (task-incremental).

    Per linear layer and convolution a basis M (d_in, k) of the old inputs' span; each gradient G becomes
    G - G M M^T. The head has rows per class, trained and answered among a task's own classes. SGD without momentum, so
    that the projected gradient is the update; everything without a basis (biases, normalisation, embeddings, grouped
    convolutions) is frozen after the first task, as in the official code.

    Deviations: the official networks use batch statistics in BatchNorm also at test time, so their accuracy depends on
    the test batch; here BatchNorm's running statistics are frozen after the first task.

    Args:
        threshold, threshold_step: share of the inputs' energy to keep for task t is threshold + threshold_step * t
            (0.97 + 0.003 t on CIFAR-100); several thresholds are one per layer, as published for other networks.
        images: images of a task from which inputs are taken (125); several numbers are one per layer, as in the official
            scripts (AlexNet: 24, 100, 100, 125, 125).
        variant: the first basis has as many directions as hold strictly less than the share (``released``: one fewer than
            needed, can be none) or the fewest that hold it (``paper``). Later tasks add the fewest in both.
        lr, batch_size: official; its 200 epochs are for training from scratch.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"task_id"})
    family: ClassVar[str] = "projection"
    paper: ClassVar[str] = "Saha et al., ICLR 2021"
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("The paper takes the fewest directions that hold the share; the released first basis stops one "
                "short of them.",
                "sahagobinda/GPM@1a238ec9 main_cifar100.py:239", table="released code",
                here=({"variant": "released"}, {"variant": "paper"})),
    )
    exempt = {"state that grows with the images is declared": "bases of layer inputs, as wide as the threshold asks"}

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 0.01,
        epochs: Whole = 10,
        batch_size: Count = 64,
        threshold: Share | tuple[Share, ...] = 0.97,
        threshold_step: Amount = 0.003,
        images: Count | tuple[Count, ...] = 125,
        variant: Literal["released", "paper"] = "released",
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.threshold, self.threshold_step, self.images, self.variant = threshold, threshold_step, images, variant
        self.layers = matrix_layers(backbone)
        for value, name in ((threshold, "threshold"), (images, "images")):
            each(value, self.layers, name)
        self.bases = nn.ParameterList()  # float64 (d_in, k), not trained, in the order of `layers`
        self.tasks: list[LabelSpace] = []

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        self.tasks.append(exp.space)
        if len(self.tasks) == 2:
            for name, parameter in self.backbone.named_parameters():
                layer, _, kind = name.rpartition(".")
                parameter.requires_grad_(parameter.requires_grad and kind == "weight" and layer in self.layers)

    def train(self, mode: bool = True) -> Gpm:
        super().train(mode)
        if len(self.tasks) > 1:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.loss(self(batch.x), batch.y, self.current)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=self.lr)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        for name, basis in zip(self.layers, self.bases, strict=False):
            weight = self.backbone.get_submodule(name).weight
            if weight.grad is not None:
                weight.grad = outside(weight.grad, basis)

    def end(self, exp: Experience) -> None:
        fresh = nn.ParameterList()
        for k, (gram, share) in enumerate(self.statistics(exp, self.backbone.forward_features)):
            if len(self.bases):
                grown = orthonormal(self.bases[k].data, new_directions(gram, self.bases[k].data, share))
            else:
                grown = self.first(gram, share)
            fresh.append(nn.Parameter(grown, requires_grad=False))
        self.bases = fresh

    def first(self, gram: Tensor, share: float) -> Tensor:
        """The first basis (d_in, k)."""
        if self.variant == "released":
            return first_directions(gram, share)
        return new_directions(gram, gram.new_zeros(len(gram), 0), share)

    def statistics(self, exp: Experience, run: Callable[[Tensor], Tensor]) -> Iterator[tuple[Tensor, float]]:
        """(second moment of its inputs, share of energy to keep) of each layer; layers that are not called are let go."""
        images = each(self.images, self.layers, "images")
        grams = input_grams(self, self.layers, run, self.sample(exp), dict(zip(self.layers, images, strict=True)))
        shares = dict(zip(self.layers, each(self.threshold, self.layers, "threshold"), strict=True))
        self.layers = tuple(name for name in self.layers if name in grams)  # the others freeze like biases
        for name in self.layers:
            yield grams[name], min(1.0, shares[name] + self.threshold_step * (len(self.tasks) - 1))

    def sample(self, exp: Experience) -> list[Batch]:
        """As many random training images as any layer wants, in one batch."""
        n = self.images if isinstance(self.images, int) else max(self.images)
        return [next(batches(exp.data, n, shuffle=True, generator=self.rng.on("cpu"), device=self.device))]


def each(value: Any, layers: tuple[str, ...], name: str) -> tuple[Any, ...]:
    """One value per layer.

    Raises:
        UserError: if several are given, but not one per layer.
    """
    if not isinstance(value, (tuple, list)):
        return (value,) * len(layers)
    if len(value) != len(layers):
        raise UserError(f"{name} has {len(value)} values for the {len(layers)} layers {', '.join(layers)}; give one each.")
    return tuple(value)


def outside(gradient: Tensor, basis: Tensor) -> Tensor:
    """A weight's gradient without its part in the span of ``basis`` (d_in, k); computed in the basis' precision."""
    flat = gradient.flatten(1).to(basis.dtype)
    return (flat - (flat @ basis) @ basis.T).to(gradient.dtype).view_as(gradient)

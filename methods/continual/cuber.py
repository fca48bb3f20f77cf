"""Lin, Yang, Fan and Zhang, "Beyond Not-Forgetting: Continual Learning with Backward Knowledge Transfer", NeurIPS 2022
(CUBER).

Gradient projection that lets go where it may: if the new task's gradient agrees with an old task's, the update inside
that task's subspace is kept, and the old task can get better.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cl_bench import Amount, Backbone, Batch, Count, Experience, LabelSpace, Share, Whole, select

from ._subspace import Features, input_grams, orthonormal, own_directions, task_of, weight_gradients
from .gpm import Gpm, outside

__all__ = ["Cuber"]

WEAK, CONFLICT, TRANSFER = 1, 2, 3  # the paper's regimes, per layer and old task


class Cuber(Gpm):
    """Continual learning with backward transfer: old subspaces are protected unless the gradients agree.

    Per layer and old task j with subspace S_j, stored gradient g_j and the new task's gradient g at the old weights:
    regime 1 if |Proj_{S_j} g| <= epsilon1 |g|; else 2 if <g_j, g> <= epsilon2 |g_j| |g|; else 3. The gradient loses its
    part in S_j in regimes 1 and 2; in regime 3 it is kept and drift inside S_j costs strength * |Proj_{S_j}(w - w_old)|,
    until the agreement fails during training (then regime 2). The ``related`` most strongly related tasks of regimes 2
    and 3 give forward transfer: the task uses w + sum_j w B_j (Q_j - I) B_j^T with its own learned Q_j.

    There is no official repository; ``strength`` 1 is ours. Otherwise as ``gpm``, whose deviations it shares.

    Args:
        epsilon1, epsilon2: thresholds of relation and of agreement.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"task_id"})
    family: ClassVar[str] = "projection"
    paper: ClassVar[str] = "Lin et al., NeurIPS 2022"

    def __init__(
        self, backbone: Backbone, *, lr: Amount = 0.01, epochs: Whole = 10, batch_size: Count = 64, threshold: Share = 0.97,
        threshold_step: Amount = 0.003, images: Count = 125, epsilon1: float = 0.5, epsilon2: float = 0.0, related: Whole = 2,
        strength: Amount = 1.0,
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size, threshold=threshold,
                         threshold_step=threshold_step, images=images)
        self.epsilon1, self.epsilon2, self.related, self.strength = epsilon1, epsilon2, related, strength
        self.own: list[list[list[int]]] = []  # task, layer -> columns of the layer's basis that span S_j
        self.gradients = nn.ParameterList()  # [task * layers + layer] = g_j (out, d_in)
        self.scales = nn.ParameterDict()  # "task_layer_oldtask" -> Q (k, k)
        self.before = nn.ParameterList()  # w_old per layer, during a task
        self.regimes: dict[tuple[int, int], int] = {}  # (layer, old task) -> regime, during a task

    def weight(self, layer: int) -> nn.Parameter:
        return self.backbone.get_submodule(self.layers[layer]).weight  # type: ignore[return-value]

    def subspace(self, layer: int, task: int) -> Tensor:
        """Orthonormal basis (d_in, k) of S_j at a layer."""
        return self.bases[layer].data[:, self.own[task][layer]]

    def agrees(self, g: Tensor, layer: int, task: int) -> bool:
        """<g_j, g> > epsilon2 |g_j| |g|."""
        old = self.gradients[task * len(self.layers) + layer]
        return bool((old * g).sum() > self.epsilon2 * old.norm() * g.norm())

    def regime(self, g: Tensor, layer: int, task: int) -> tuple[int, float]:
        """(regime, |Proj_{S_j} g| / |g|) of a gradient g (out, d_in)."""
        inside = (g.to(self.bases[layer].dtype) @ self.subspace(layer, task)).norm()
        share = float(inside / g.norm().clamp_min(torch.finfo(g.dtype).tiny))
        if share <= self.epsilon1:
            return WEAK, share
        return (TRANSFER if self.agrees(g, layer, task) else CONFLICT), share

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        task, self.regimes, weights = len(self.tasks) - 1, {}, [self.weight(k) for k in range(len(self.layers))]
        if task == 0:
            return
        self.before = nn.ParameterList(nn.Parameter(w.detach().clone(), requires_grad=False) for w in weights)
        for layer, g in enumerate(weight_gradients(self, self.layers, self.sample(exp)[0])):
            found = {old: self.regime(g, layer, old) for old in range(task)}
            self.regimes |= {(layer, old): regime for old, (regime, _) in found.items()}
            strong = sorted((old for old in found if found[old][0] != WEAK), key=lambda old: -found[old][1])
            for old in strong[: self.related]:
                scale = torch.eye(len(self.own[old][layer]), dtype=g.dtype, device=g.device)
                self.scales[f"{task}_{layer}_{old}"] = nn.Parameter(scale)

    def scaled(self, task: int) -> dict[str, Tensor]:
        """w + sum_j w B_j (Q_j - I) B_j^T where ``task`` has scales, by name for a functional call."""
        out: dict[str, Tensor] = {}
        for key, scale in self.scales.items():
            owner, layer, old = (int(part) for part in key.split("_"))
            if owner == task:
                name, weight = f"backbone.{self.layers[layer]}.weight", self.weight(layer)
                basis = self.subspace(layer, old).to(weight.dtype)
                change = (weight.flatten(1) @ basis) @ (scale - torch.eye(len(scale)).to(scale)) @ basis.T
                out[name] = out.get(name, weight) + change.view_as(weight)
        return out

    def features(self, x: Tensor, task: int = -1) -> Tensor:
        """Features with the weights of ``task``; the current one when -1."""
        weights = self.scaled(task if task >= 0 else len(self.tasks) - 1)
        return functional_call(Features(self.backbone), weights, (x,)) if weights else self.backbone.forward_features(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        return select(self.head(self.features(x, task_of(space, self.tasks))), self.head.space, space)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        for (layer, old), regime in self.regimes.items():
            if regime == TRANSFER:
                drift = (self.weight(layer) - self.before[layer]).flatten(1)
                inside = drift @ self.subspace(layer, old).to(drift.dtype)
                loss = loss + self.strength * (inside.square().sum() + 1e-12).sqrt()  # |.| has no slope at 0
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        for layer in range(len(self.layers) if self.regimes else 0):
            grad, closed = self.weight(layer).grad, set()
            if grad is None:
                continue
            for old in range(len(self.tasks) - 1):
                if self.regimes[layer, old] == TRANSFER and not self.agrees(grad.flatten(1), layer, old):
                    self.regimes[layer, old] = CONFLICT
                if self.regimes[layer, old] != TRANSFER:
                    closed |= set(self.own[old][layer])
            self.weight(layer).grad = outside(grad, self.bases[layer].data[:, sorted(closed)])

    def end(self, exp: Experience) -> None:
        task, fresh, mine = len(self.tasks) - 1, nn.ParameterList(), list[list[int]]()
        grams = input_grams(self, self.layers, self.features, self.sample(exp))
        self.layers = tuple(name for name in self.layers if name in grams)
        for k, name in enumerate(self.layers):
            basis = self.bases[k].data if len(self.bases) else grams[name].new_zeros(len(grams[name]), 0)
            old, new = own_directions(grams[name], basis, min(1.0, self.threshold + self.threshold_step * task))
            fresh.append(nn.Parameter(orthonormal(basis, new), requires_grad=False))
            mine.append([*old.tolist(), *range(basis.shape[1], basis.shape[1] + new.shape[1])])
        self.bases, self.regimes, self.before = fresh, {}, nn.ParameterList()
        self.own.append(mine)
        for g in weight_gradients(self, self.layers, self.sample(exp)[0]):
            self.gradients.append(nn.Parameter(g.detach(), requires_grad=False))
        self.scales.requires_grad_(False)

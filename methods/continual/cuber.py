"""Lin, Yang, Fan and Zhang, "Beyond Not-Forgetting: Continual Learning with Backward Knowledge Transfer", NeurIPS 2022
(CUBER).

Gradient projection that lets go where gradients of new and old task agree: there the old task can get better.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cl_bench import Amount, Backbone, Count, Experience, LabelSpace, Share, Whole, align_columns

from .._differs import Differs
from ._subspace import Features, orthonormal, own_directions, task_of, weight_gradients
from ._trust import CONFLICT, TRANSFER, WEAK, agree, projected_norm, regime_of, scaled_weight, slope
from .gpm import Gpm, outside

__all__ = ["Cuber"]


class Cuber(Gpm):
    """Continual learning with backward transfer: old subspaces are protected unless the gradients agree.

    Per layer and old task j with subspace S_j, stored gradient g_j and the new task's gradient g at the old weights:
    regime 1 if |Proj_{S_j} g| <= epsilon1 |g|; else 2 if <g_j, g> <= epsilon2 |g_j| |g|; else 3. The gradient loses its
    part in S_j in regimes 1 and 2; in regime 3 it is kept and drift inside S_j costs strength * |Proj_{S_j}(w - w_old)|,
    until the agreement fails during training (then regime 2). Agreement is asked of the task's gradient alone, before that
    cost joins it, averaged over about an epoch of steps: the cost always points back, and one batch is noise. The
    ``related`` strongest tasks of regimes 2 and 3 give forward transfer: w + sum_j w B_j (Q_j - I) B_j^T, with learned Q_j.

    There is no official repository (TRGP's code has regimes 1 and 2); ``strength`` is ours. The cost is a norm, not its square,
    so it pulls with that constant force: at 1 it outweighs a task's gradient and nothing is transferred.

    Args:
        epsilon1, epsilon2: thresholds of relation and of agreement.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"task_id"})
    family: ClassVar[str] = "projection"
    paper: ClassVar[str] = "Lin et al., NeurIPS 2022"
    differs = (Differs("TRGP leaves a task's first new direction out of the joint space; here all are in.",
                       "LYang-666/TRGP@a4b67bcd main_cifar100.py:558"),)

    def __init__(
        self, backbone: Backbone, *, lr: Amount = 0.01, epochs: Whole = 10, batch_size: Count = 64,
        threshold: Share | tuple[Share, ...] = 0.97, threshold_step: Amount = 0.003, images: Count | tuple[Count, ...] = 125,
        variant: Literal["released", "paper"] = "released", epsilon1: float = 0.5, epsilon2: float = 0.0, related: Whole = 2,
        strength: Amount = 0.01,
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size, threshold=threshold,
                         threshold_step=threshold_step, images=images, variant=variant)
        self.epsilon1, self.epsilon2, self.related, self.strength = epsilon1, epsilon2, related, strength
        self.own: list[list[list[int]]] = []  # task, layer -> columns of the layer's basis that span S_j
        self.gradients = nn.ParameterList()  # [task * layers + layer] = g_j (out, d_in)
        self.scales = nn.ParameterDict()  # "task_layer_oldtask" -> Q (k, k)
        self.before = nn.ParameterList()  # w_old per layer, during a task
        self.means: list[Tensor] = []  # the task's gradient per layer, averaged over steps, during a task
        self.regimes: dict[tuple[int, int], int] = {}  # (layer, old task) -> regime, during a task
        self.let_go: list[int] = []  # per task, how many (layer, old task) stayed in regime 3

    def weight(self, layer: int) -> nn.Parameter:
        return self.backbone.get_submodule(self.layers[layer]).weight  # type: ignore[return-value]

    def subspace(self, layer: int, task: int) -> Tensor:
        """Orthonormal basis (d_in, k) of S_j at a layer."""
        return self.bases[layer].data[:, self.own[task][layer]]

    def agrees(self, g: Tensor, layer: int, task: int) -> bool:
        """Whether a gradient (out, d_in) agrees with what an old task left."""
        return agree(self.gradients[task * len(self.layers) + layer], g, self.epsilon2)

    def regime(self, g: Tensor, layer: int, task: int) -> tuple[int, float]:
        """(regime, |Proj_{S_j} g| / |g|) of a gradient g (out, d_in)."""
        inside, whole = float(projected_norm(g, self.subspace(layer, task))), float(g.norm())
        share = inside / max(whole, torch.finfo(g.dtype).tiny)
        return regime_of(inside, whole, self.epsilon1, self.agrees(g, layer, task)), share

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        task, weights = len(self.tasks) - 1, [self.weight(k) for k in range(len(self.layers))]
        if task == 0:
            return
        self.before = nn.ParameterList(nn.Parameter(w.detach().clone(), requires_grad=False) for w in weights)
        self.means = weight_gradients(self, self.layers, self.sample(exp)[0])
        for layer, g in enumerate(self.means):
            found = {old: self.regime(g, layer, old) for old in range(task)}
            self.regimes |= {(layer, old): regime for old, (regime, _) in found.items()}
            strong = sorted((old for old in found if found[old][0] != WEAK), key=lambda old: -found[old][1])
            for old in strong[: self.related]:
                scale = torch.eye(len(self.own[old][layer]), dtype=g.dtype, device=g.device)
                self.scales[f"{task}_{layer}_{old}"] = nn.Parameter(scale)
        self.window = max(1, math.ceil(len(exp.data) / self.batch_size))  # type: ignore[arg-type]

    def scaled(self, task: int) -> dict[str, Tensor]:
        """The weights that ``task`` uses where it has scales, by name for a functional call."""
        parts: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for key, scale in self.scales.items():
            owner, layer, old = (int(part) for part in key.split("_"))
            if owner == task:
                parts.setdefault(layer, []).append((self.subspace(layer, old).to(scale.dtype), scale))
        return {
            f"backbone.{self.layers[k]}.weight": scaled_weight(self.weight(k).flatten(1), p).view_as(self.weight(k))
            for k, p in parts.items()
        }

    def features(self, x: Tensor, task: int = -1) -> Tensor:
        """Features with the weights of ``task``; the current one when -1."""
        weights = self.scaled(task if task >= 0 else len(self.tasks) - 1)
        return functional_call(Features(self.backbone), weights, (x,)) if weights else self.backbone.forward_features(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        return align_columns(self.head(self.features(x, task_of(space, self.tasks))), self.head.space, space)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        for layer in range(len(self.layers) if self.regimes else 0):
            grad, closed = self.weight(layer).grad, set()
            if grad is None:
                continue
            self.means[layer] = self.means[layer].lerp(grad.flatten(1), 1 / self.window)
            drift, back = (self.weight(layer).detach() - self.before[layer]).flatten(1), torch.zeros_like(grad)
            for old in range(len(self.tasks) - 1):
                if self.regimes[layer, old] == TRANSFER and not self.agrees(self.means[layer], layer, old):
                    self.regimes[layer, old] = CONFLICT
                if self.regimes[layer, old] == TRANSFER:
                    back += self.strength * slope(drift, self.subspace(layer, old)).view_as(grad)
                else:
                    closed |= set(self.own[old][layer])
            self.weight(layer).grad = outside(grad + back, self.bases[layer].data[:, sorted(closed)])

    def end(self, exp: Experience) -> None:
        mine, bases, fresh = list[list[int]](), self.bases, nn.ParameterList()
        for k, (gram, share) in enumerate(self.statistics(exp, self.features)):
            basis = bases[k].data if len(bases) else gram.new_zeros(len(gram), 0)
            old, new = own_directions(gram, basis, share) if len(bases) else (basis[0].long(), self.first(gram, share))
            fresh.append(nn.Parameter(orthonormal(basis, new), requires_grad=False))
            mine.append([*old.tolist(), *range(basis.shape[1], basis.shape[1] + new.shape[1])])
        self.let_go.append(sum(r == TRANSFER for r in self.regimes.values()))
        self.bases, self.regimes, self.means, self.before = fresh, {}, [], nn.ParameterList()
        self.own.append(mine)
        for g in weight_gradients(self, self.layers, self.sample(exp)[0]):
            self.gradients.append(nn.Parameter(g.detach(), requires_grad=False))
        self.scales.requires_grad_(False)

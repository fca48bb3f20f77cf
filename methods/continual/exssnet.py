"""Yadav and Bansal, "Exclusive Supermask Subnetwork Training for Continual Learning", Findings of ACL 2023
(prateeky2806/exessnet).

Every task finds a binary mask over one shared network, then trains only those masked weights that no earlier task uses:
nothing old is ever overwritten.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cl_bench import Amount, Backbone, Batch, Count, Experience, LabelSpace, Method, Share, Whole, batches, select

from ._subspace import Features, matrix_layers, task_of
from ._supermask import Packed, norm_state, rank_first, top

__all__ = ["Exssnet"]


class Exssnet(Method):
    """Exclusive supermasks: a mask per task, weights trained where no earlier mask lies, kNN transfer (task-incremental).

    Per task: (1) scores start from Kaiming noise or, if a k-nearest-neighbour classifier on the features under some
    earlier mask beats chance, from the best such mask (KKT); (2) ``mask_epochs`` of Adam on the scores with a straight-
    through gradient, the mask being the top ``density`` of |score| per layer, weights fixed; (3) ``weight_epochs`` of
    Adam on the weights in this mask and no earlier one. Each task keeps its mask (1 bit per weight) and BatchNorm
    statistics; forgetting is zero by construction. Adam starts afresh in each task and has no weight decay, so a weight
    whose gradient is masked to zero does not move at all.

    Deviations: head rows per class, trained with the task and then left alone, in place of one masked head shared by
    all tasks; parameters that are no weight matrix (biases, affine normalisation, embeddings) stay as they are.

    Args:
        density: share of each layer's weights in a mask.
        base: ``pretrained`` keeps the backbone's weights, as the paper does with BERT; ``signed_constant`` replaces them
            by +-std of Kaiming's initialisation, as it does for images.
        lr, weight_lr: of the scores and of the weights; their epochs are the repository's example, 50 and 50.
        knn: neighbours in the transfer test, which uses a fifth of the data, two thirds of it as references; 0 = off.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"task_id"})
    family: ClassVar[str] = "masks"
    paper: ClassVar[str] = "Yadav & Bansal, Findings of ACL 2023"
    exempt = {"learns above chance": "fifty epochs choose masks before a weight moves; the checker's toy has eight"}

    def __init__(
        self, backbone: Backbone, *, lr: Amount = 0.01, weight_lr: Amount = 0.001, mask_epochs: Whole = 50,
        weight_epochs: Whole = 50, batch_size: Count = 64, density: Share = 0.1,
        base: Literal["signed_constant", "pretrained"] = "pretrained", knn: Whole = 10,
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=mask_epochs + weight_epochs, batch_size=batch_size)
        self.weight_lr, self.mask_epochs, self.weight_epochs = weight_lr, mask_epochs, weight_epochs
        self.density, self.base, self.knn = density, base, knn
        backbone.requires_grad_(False)
        self.layers = matrix_layers(backbone)
        if base == "signed_constant":
            for name in self.layers:
                w = self.weight(name)
                w.data = w.data.sign() * math.sqrt(2 / w[0].numel())
        self.scores = nn.ParameterDict()  # of the current task
        self.masks = nn.ModuleList()  # one Packed per task
        self.free = Packed([])  # weights that no earlier task holds, during a task
        self.tasks: list[LabelSpace] = []

    def weight(self, layer: str) -> nn.Parameter:
        return self.backbone.get_submodule(layer).weight  # type: ignore[return-value]

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        self.tasks.append(exp.space)
        best = self.transfer(exp) if self.knn and len(self.masks) else None
        self.scores = nn.ParameterDict()
        for k, name in enumerate(self.layers):
            noise = torch.empty_like(self.weight(name)).flatten(1)
            nn.init.kaiming_uniform_(noise, a=math.sqrt(5))
            mask = None if best is None else self.masks[best].read()[k]  # type: ignore[operator]
            start = noise if mask is None else rank_first(noise, mask.flatten(1))
            self.scores[str(k)] = nn.Parameter(start.view_as(self.weight(name)))
            self.weight(name).requires_grad_(True)
        held = [old.read() for old in self.masks]  # type: ignore[operator]
        self.free = Packed([~torch.stack(m).any(0) for m in zip(*held, strict=True)])

    def epochs_for(self, exp: Experience) -> int:
        return self.mask_epochs + self.weight_epochs

    def forward(self, x: Tensor) -> Tensor:
        """Logits under the current scores' masks: gradients reach the scores first, the weights later."""
        masking = self.current_epoch < self.mask_epochs
        weights = {}
        for k, name in enumerate(self.layers):
            w, mask = self.weight(name), top(self.scores[str(k)], self.density)
            weights[f"backbone.{name}.weight"] = w.detach() * mask if masking else w * mask.detach()
        return self.head(functional_call(Features(self.backbone), weights, (x,)))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.loss(self(batch.x), batch.y, self.current)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        for name, free in zip(self.layers, self.free.read(), strict=False):  # in the first task all are free
            grad = self.weight(name).grad
            if grad is not None:
                grad.mul_(free)  # the mask itself is in the gradient already

    def configure_optimizers(self) -> Any:
        weights = [self.weight(name) for name in self.layers]
        rest = [*self.scores.values(), *self.head.parameters()]
        return torch.optim.Adam([{"params": rest, "lr": self.lr}, {"params": weights, "lr": self.weight_lr}])

    def end(self, exp: Experience) -> None:
        masks = [top(self.scores[str(k)].detach(), self.density).bool() for k in range(len(self.layers))]
        self.masks.append(Packed(masks, norm_state(self.backbone)))
        self.scores = nn.ParameterDict()
        self.backbone.requires_grad_(False)
        for module in self.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_running_stats()

    @torch.no_grad()
    def transfer(self, exp: Experience) -> int | None:
        """The earlier task whose features classify the new one best, if better than chance."""
        rows = max(self.knn + 2, len(exp.data) // 5)  # type: ignore[arg-type]
        batch = next(batches(exp.data, rows, shuffle=True, generator=self.rng.on("cpu"), device=self.device))
        cut, y = len(batch.y) * 2 // 3, batch.y
        found = []
        self.eval()
        for task in range(len(self.masks)):
            f = self.features(batch.x, task)
            near = torch.cdist(f[cut:], f[:cut]).topk(min(self.knn, cut), largest=False).indices
            found.append(float((y[:cut][near].mode(1).values == y[cut:]).float().mean()))
        self.train()
        best = max(range(len(found)), key=found.__getitem__)
        return best if found[best] > 1 / len(exp.space) else None

    def features(self, x: Tensor, task: int) -> Tensor:
        """Features under a learned task's mask and normalisation statistics."""
        if task < 0:
            return self.backbone.forward_features(x)
        packed = self.masks[task]
        masks = packed.read()  # type: ignore[operator]
        weights = {f"backbone.{n}.weight": self.weight(n) * m for n, m in zip(self.layers, masks, strict=True)}
        norms = {f"backbone.{n}": v for n, v in packed.norms().items()}  # type: ignore[operator]
        return functional_call(Features(self.backbone), {**weights, **norms}, (x,))

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        return select(self.head(self.features(x, task_of(space, self.tasks))), self.head.space, space)

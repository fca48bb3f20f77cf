"""Yadav & Bansal, "Exclusive Supermask Subnetwork Training for Continual Learning", ACL Findings 2023
(prateeky2806/exessnet)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cl_bench import Amount, Backbone, Batch, Count, Experience, LabelSpace, Method, Share, Whole, batches
from cl_bench.heads import align_columns

from .._differs import Differs
from ._subspace import Features, matrix_layers, task_of
from ._supermask import Packed, donors, knn_accuracy, norm_state, reset_norms, top, two_cosines

__all__ = ["Exssnet"]


class Exssnet(Method):
    """Exclusive supermasks: a mask per task, weights trained where no earlier mask lies (task-incremental).

    Per task: (1) scores start from Kaiming noise, or with ``kkt`` from the scores of earlier tasks under whose masks nearest
    neighbours beat chance; (2) ``mask_epochs`` of Adam on the scores with a straight-through gradient, the mask being the top
    ``density`` of |score| per layer, weights fixed; (3) ``weight_epochs`` of Adam on the weights in this mask and no earlier
    one. Each task keeps its mask (1 bit per weight; with ``kkt`` its scores too) and BatchNorm statistics; forgetting is zero
    by construction. Adam (betas 0.9 and 0.999) starts afresh in each task and has no decay, so a weight whose gradient is
    masked to zero does not move; a cosine per phase, stepped per epoch, both at the rate of the weights. KKT is off.

    Deviations: head rows per class, trained with the task and then left alone, in place of one masked head shared by
    all tasks; parameters that are no weight matrix stay as they are; the last epoch counts, not the one that validates best.

    Args:
        density: share of each layer's weights in a mask.
        base: ``pretrained`` keeps the weights (the paper's BERT); ``signed_constant``: +-std of Kaiming's (its images).
        lr, weight_lr: of the scores and of the weights (epochs: the repository's example).
        kkt: ``none``; the ``best`` earlier task if above chance; ``always`` that; ``all`` above chance, whose mean is kept.
        knn: neighbours in the transfer test, which reads a fifth of the batches and one more.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"task_id"})
    family: ClassVar[str] = "masks"
    paper: ClassVar[str] = "Yadav & Bansal, Findings of ACL 2023"
    differs = (Differs("The released vision runs have no transfer of scores; the paper has it (KKT).",
                       "prateeky2806/exessnet@1e768f85 args.py:84", here=({"kkt": "none"}, {"kkt": "best"}),
                       both={"mask_epochs": 10, "weight_epochs": 10, "batch_size": 8, "knn": 5}),
               Differs("The schedule takes accuracy for a loss.", "prateeky2806/exessnet@1e768f85 utils/my_utils.py:252"))
    exempt = {"learns above chance": "fifty epochs choose masks before a weight moves; the checker's toy has eight"}

    def __init__(
        self, backbone: Backbone, *, lr: Amount = 0.001, weight_lr: Amount = 0.001, mask_epochs: Whole = 50,
        weight_epochs: Whole = 50, batch_size: Count = 64, density: Share = 0.1,
        base: Literal["signed_constant", "pretrained"] = "pretrained",
        kkt: Literal["none", "best", "always", "all"] = "none", knn: Count = 200,
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=mask_epochs + weight_epochs, batch_size=batch_size)
        self.weight_lr, self.mask_epochs, self.weight_epochs = weight_lr, mask_epochs, weight_epochs
        self.density, self.base, self.kkt, self.knn = density, base, kkt, knn
        backbone.requires_grad_(False)
        self.layers = matrix_layers(backbone)
        for w in (self.weight(name) for name in self.layers if base == "signed_constant"):
            w.data = w.data.sign() * math.sqrt(2 / w[0].numel())
        self.scores = nn.ParameterDict()  # of the current task
        self.masks, self.kept = nn.ModuleList(), nn.ModuleList()  # per task a Packed, and with kkt its scores
        self.free = Packed([])  # weights that no earlier task holds, during a task
        self.tasks: list[LabelSpace] = []

    def weight(self, layer: str) -> nn.Parameter:
        return self.backbone.get_submodule(layer).weight  # type: ignore[return-value]

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        self.tasks.append(exp.space)
        found = self.donors(exp) if len(self.kept) else []
        self.scores = nn.ParameterDict()
        for k, name in enumerate(self.layers):
            start = torch.empty_like(self.weight(name))
            nn.init.kaiming_uniform_(start, a=math.sqrt(5))
            if found:
                start = torch.stack([self.kept[t][k].detach() for t in found]).mean(0)  # type: ignore[index]
                self.kept[found[0]][k].data.copy_(start)  # type: ignore[index]
            self.scores[str(k)] = nn.Parameter(start.clone())
            self.weight(name).requires_grad_(True)
        held = zip(*(old.read() for old in self.masks), strict=True)  # type: ignore[operator]
        self.free = Packed([~torch.stack(m).any(0) for m in held])

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
            if self.weight(name).grad is not None:  # the mask itself is in it already
                self.weight(name).grad.mul_(free)  # type: ignore[union-attr]

    def configure_optimizers(self) -> Any:
        weights = [self.weight(name) for name in self.layers]
        rest = [*self.scores.values(), *self.head.parameters()]
        optimizer = torch.optim.Adam([{"params": rest, "lr": self.lr}, {"params": weights, "lr": self.weight_lr}])
        factor = partial(two_cosines, first=self.mask_epochs, second=self.weight_epochs)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def end(self, exp: Experience) -> None:
        masks = [top(self.scores[str(k)].detach(), self.density).bool() for k in range(len(self.layers))]
        self.masks.append(Packed(masks, norm_state(self.backbone)))
        if self.kkt != "none":
            self.kept.append(nn.ParameterList(self.scores.values()).requires_grad_(False))
        self.scores = nn.ParameterDict()
        self.backbone.requires_grad_(False)
        reset_norms(self.backbone)

    @torch.no_grad()
    def donors(self, exp: Experience) -> list[int]:
        """The earlier tasks from whose scores this one starts."""
        n = len(exp.data)  # type: ignore[arg-type]
        rows = (math.ceil(0.2 * math.ceil(n / self.batch_size)) + 1) * self.batch_size
        batch = next(batches(exp.data, rows, shuffle=True, generator=self.rng.on("cpu"), device=self.device))
        found = [knn_accuracy(self.eval().features(batch.x, t), batch.y, self.knn) for t in range(len(self.masks))]
        self.train()
        return donors(found, 1 / len(exp.space), self.kkt)

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
        return align_columns(self.head(self.features(x, task_of(space, self.tasks))), self.head.space, space)

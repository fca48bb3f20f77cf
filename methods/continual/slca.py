"""SLCA (Zhang et al., ICCV 2023, arXiv 2303.05118, github.com/GengDavid/SLCA): a slow backbone, then a classifier aligned
on Gaussians of all classes."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor

from cl_bench import Backbone, Batch, Experience
from cl_bench.heads import Head, LinearHead
from cl_bench.ranges import Amount, Count, Positive, Whole

from .._differs import Differs
from ._frozen_trunk import FrozenTrunk
from ._gaussians import Gaussians, mean_scale, rehearse

__all__ = ["SLCA"]


class SLCA(FrozenTrunk):
    """Fine-tunes everything, the backbone 100 times slower than the head, then aligns a copy of the head.

    Per experience: cross-entropy among the current classes, rows of earlier classes frozen, SGD with momentum 0.9 and a
    tenth of the rate after ``milestone`` epochs. Then mean and covariance of each new class are taken (old ones are
    not renewed). From the second experience on a copy of the head is trained on features drawn from all classes'
    Gaussians, means scaled by ``0.9 + 0.1 task / t``, logits divided by the mean over tasks of each task's logit norm and
    by ``temperature``. The copy answers; the head itself goes on as it was. SGD with momentum 0.9 and decay 5e-4 everywhere,
    stepped per epoch; rows of the head from N(0, 0.02^2), biases zero, as released.

    Args:
        backbone_lr: rate of the backbone (published: lr / 100).
        milestone: epoch of the rate's fall; None = 9/10 of the epochs (published: 18 of 20).
        align_epochs, align_lr, samples: the alignment's length, rate and draws per class and epoch.
        temperature: divides the normalised logits.
    """

    family: ClassVar[str] = "fine-tuning"
    paper: ClassVar[str] = "Zhang et al., SLCA, ICCV 2023"
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("PILOT's run aligns for 3 epochs and has batches of 64; the authors' 5 and 128.",
                "LAMDA-CL/LAMDA-PILOT@52407147 exps/slca.json:20", table="released code",
                here=({"align_epochs": 5, "batch_size": 128}, {"align_epochs": 3, "batch_size": 64})),
        Differs("A class's task is its number over the newest task's size, so false where tasks differ in size; here it is the "
                "task that brought it.", "GengDavid/SLCA@169d4e6b models/slca.py:200", table="released code"),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 0.01,
        epochs: Whole = 20,
        batch_size: Count = 128,
        backbone_lr: Amount = 1e-4,
        milestone: Whole | None = None,
        weight_decay: Amount = 5e-4,
        align_epochs: Whole = 5,
        align_lr: Amount = 0.01,
        samples: Count = 256,
        temperature: Positive = 0.1,
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.backbone_lr, self.milestone, self.weight_decay = backbone_lr, milestone, weight_decay
        self.align_epochs, self.align_lr = align_epochs, align_lr
        self.samples, self.temperature = samples, temperature
        self.gaussians = Gaussians(backbone.num_features)
        self.aligned: LinearHead | None = None
        self.sizes: list[int] = []  # classes that each experience brought
        self.learned = 0
        self.idle: tuple[list[int], Tensor, Tensor] | None = None  # rows of classes that are not here, as they are

    def make_head(self) -> Head:
        return LinearHead(self.backbone.num_features, std=0.02)

    def train(self, mode: bool = True) -> SLCA:
        torch.nn.Module.train(self, mode)  # everything learns here, batch statistics too
        return self

    def begin(self, exp: Experience) -> None:
        before = len(self.head.space)
        super().begin(exp)
        if len(self.head.space) > before:
            self.sizes.append(len(self.head.space) - before)
        self.learned += 1
        self.aligned = None
        head = self.head
        assert isinstance(head, LinearHead) and head.bias is not None
        rows = [k for k, c in enumerate(head.space) if c not in exp.space]
        self.idle = rows, head.weight.detach()[rows].clone(), head.bias.detach()[rows].clone()

    def forward(self, x: Tensor) -> Tensor:
        return (self.aligned or self.head)(self.backbone.forward_features(x))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.loss(self(batch.x), batch.y, among=self.current)

    def configure_optimizers(self) -> Any:
        groups = [
            {"params": list(self.backbone.model.parameters()), "lr": self.backbone_lr},
            {"params": list(self.head.parameters()), "lr": self.lr},
        ]
        optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=self.weight_decay)
        falls = self.milestone if self.milestone is not None else max(1, int(0.9 * self.epochs))
        return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [falls], 0.1)]

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert self.idle is not None and isinstance(self.head, LinearHead) and self.head.bias is not None
        rows, weight, bias = self.idle  # weight decay must not shrink them either
        self.head.weight[rows], self.head.bias[rows] = weight.to(self.head.weight), bias.to(self.head.bias)

    def end(self, exp: Experience) -> None:
        self.idle = None
        self.gaussians.add(*self.embed(exp))
        if self.learned > 1:
            self.align()

    @torch.enable_grad()
    def align(self) -> None:
        """Train a copy of the head on features drawn from the Gaussians of all classes."""
        head = copy.deepcopy(self.head)
        assert isinstance(head, LinearHead)
        draw = self.rng.on(self.device)
        scale = mean_scale(head.columns(self.gaussians.labels), self.sizes).to(self.dtype)

        def features() -> tuple[Tensor, Tensor]:
            x, y = self.gaussians.sample(self.samples, draw, scale)
            order = torch.randperm(len(x), generator=draw, device=x.device)
            return x[order], head.columns(y[order])

        rehearse(head, features, self.sizes, self.samples, self.align_epochs, self.align_lr, self.weight_decay,
                 self.temperature)
        self.aligned = head.requires_grad_(False)

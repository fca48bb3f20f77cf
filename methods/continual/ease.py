"""EASE (Zhou et al., CVPR 2024, arXiv 2403.12030, github.com/sun-hailong/CVPR24-Ease): one adapter and so one feature
subspace per task; prototypes in all of them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench import Backbone, Batch, CosineHead, Experience, attach
from cl_bench.heads import Head, cosines
from cl_bench.ranges import Amount, Count, Size, Text, Whole

from .._differs import Differs
from ._frozen_trunk import FrozenTrunk

__all__ = ["EASE"]


class EASE(FrozenTrunk):
    """Trains a fresh adapter with a temporary cosine head per experience; classifies by prototypes in every subspace.

    New classes get their mean under every adapter. Old classes have no images under a new adapter: their prototype there
    is ``softmax(cos(old, new)) @ new``, similarities taken in the old class's own subspace, the prototypes in the new
    one; with every later experience all pairs are computed again, all classes of task >= j being donors for subspace j.
    A class of task i scores ``cos in subspace i + alpha / (t - 1) * sum of cos in the others``. t forward passes.

    Args:
        r: bottleneck of an adapter, clipped to the width.
        alpha: weight of the other subspaces.
        at: anchored pattern of the blocks.
    """

    family: ClassVar[str] = "adapter"
    paper: ClassVar[str] = "Zhou et al., EASE, CVPR 2024"
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("The other subspaces' cosines are divided by the 0-based index of the task, their number; the "
                "paper writes a plain sum.",
                "sun-hailong/CVPR24-Ease@6d67508e backbone/linears.py:75", table="released code"),
    )
    prototypes: Tensor
    task: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 0.025,
        epochs: Whole = 20,
        batch_size: Count = 48,
        r: Size = 64,
        alpha: Amount = 0.1,
        weight_decay: Amount = 5e-4,
        at: Text = r"blocks\.\d+",
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.r, self.alpha, self.weight_decay, self.at = r, alpha, weight_decay, at
        self.adapters = attach(backbone, "adaptformer", at, r=r)
        self.temporary: CosineHead | None = None
        self.register_buffer("prototypes", torch.zeros(0, 0, backbone.num_features))  # (tasks, classes, d)
        self.register_buffer("task", torch.zeros(0, dtype=torch.int64))  # of each class

    def make_head(self) -> Head:
        return Head(self.backbone.num_features)  # keeps the label space; prototypes answer

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        if len(self.prototypes):
            self.adapters.add(f"task{len(self.prototypes)}")
        now = self.adapters.names[-1]
        self.adapters.use(now)
        self.adapters.train_only(now)
        self.temporary = CosineHead(self.backbone.num_features).to(self.device, self.dtype)
        self.temporary.grow(exp.space)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert self.temporary is not None
        logits = self.temporary(self.backbone.forward_features(batch.x))
        return F.cross_entropy(logits, self.temporary.columns(batch.y))

    def configure_optimizers(self) -> Any:
        return self.sgd(weight_decay=self.weight_decay)

    @torch.no_grad()
    def end(self, exp: Experience) -> None:
        self.temporary = None
        self.adapters.train_only()
        t, old = len(self.adapters.names), len(self.task)
        classes = len(self.head.space)
        grown = self.prototypes.new_zeros(t, classes, self.prototypes.shape[2])
        grown[: t - 1, :old] = self.prototypes
        self.prototypes = grown
        self.task = torch.cat([self.task, self.task.new_full((classes - old,), t - 1)])
        for j, name in enumerate(self.adapters.names):
            self.adapters.use(name)
            features, labels = self.embed(exp)
            column = self.head.columns(labels)
            for c in column.unique():
                if self.task[c] == t - 1:
                    self.prototypes[j, c] = features[column == c].mean(0)
        self.synthesise()

    def synthesise(self) -> None:
        """Prototypes of old classes in the subspaces that came after them."""
        self.prototypes = synthesised(self.prototypes, self.task)

    def forward(self, x: Tensor) -> Tensor:
        before, found = self.adapters.used, []
        try:
            for name, _ in zip(self.adapters.names, self.prototypes, strict=False):
                self.adapters.use(name)
                found.append(self.backbone.forward_features(x))
        finally:
            self.adapters.use(*before)
        return reweighted(torch.stack(found), self.prototypes, self.task, self.alpha)


def synthesised(prototypes: Tensor, task: Tensor) -> Tensor:
    """Prototypes (tasks, classes, d), each old class's in later subspaces filled in from the classes of that task and later:
    ``softmax(cos(old, donors) in the old class's own subspace) @ donors`` (models/ease.py, solve_sim_reset)."""
    out = prototypes.clone()
    for j in range(1, len(out)):
        donors = task >= j
        for i in range(j):
            olds, own = task == i, F.normalize(out[i], dim=1)
            out[j, olds] = (own[olds] @ own[donors].T).softmax(1) @ out[j, donors]
    return out


def reweighted(features: Tensor, prototypes: Tensor, task: Tensor, alpha: float) -> Tensor:
    """Logits (N, classes) of features (tasks, N, d): the cosine in a class's own subspace plus ``alpha / (tasks - 1)`` times
    those in the others."""
    every = cosines(features, prototypes)
    own = every.gather(0, task.expand(1, features.shape[1], -1))[0]
    return own + alpha / max(1, len(features) - 1) * (every.sum(0) - own)

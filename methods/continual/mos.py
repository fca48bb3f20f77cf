"""MOS (Sun et al., "MOS: Model Surgery for Pre-Trained Model-Based Class-Incremental Learning", AAAI 2025, arXiv
2412.09441, github.com/sun-hailong/AAAI25-MOS): an adapter per task, merged softly; the model looks up which to use."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench import Backbone, Batch, Experience, LabelSpace, PrototypeHead, align_columns, attach
from cl_bench.heads import Head, LinearHead
from cl_bench.ranges import Amount, Count, Share, Size, Text, Whole

from .._differs import Differs
from ._frozen_trunk import FrozenTrunk, cosine
from ._gaussians import Gaussians
from ._surgery import look_up, mean_of, merged, score

__all__ = ["MOS"]


class MOS(FrozenTrunk):
    """Per experience a new adapter that starts as a copy of the last and is drawn to the mean of all earlier ones.

    Loss: cross-entropy among the current classes plus ``reg * CE(M M^T / 0.8, identity)`` with M the stored class means
    above the batch's features, not normalised. ``theta <- (1 - merge) theta + merge * mean(earlier)`` after each
    step, and as released once more for every block of every training pass: 0.9^13 of an adapter of twelve blocks is
    left after a step. SGD with momentum 0.9 and decay 5e-4, its cosine stepped per epoch; rows of the head from N(0,
    0.02^2), biases zero. Then means and covariances of the new classes are kept, and from the second experience on
    the head is trained on draws from all of them. Cosine prototypes under the first adapter say where to start.

    Answering: prototypes name a class and so a task; the head under that task's adapter names a class again; at most
    ``lookups`` adapters are tried, until the task stays. The score is softmax(head) + softmax(t * prototypes), returned as its
    logarithm.

    Deviation: the authors' code merges at evaluation too, stored adapters included; here predicting changes nothing.

    Args:
        r: bottleneck, clipped to the width; reg, merge: see above; head_scale: the head's rate relative to lr.
        released_merge: False merges after each step alone, as the paper's text has it.
        align_epochs, align_lr: training of the head on draws; at: anchored pattern of the blocks.
    """

    family: ClassVar[str] = "adapter"
    paper: ClassVar[str] = "Sun et al., MOS, AAAI 2025"
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("Adapters are merged once per block of every pass, in evaluation too; the paper merges once per "
                "step.",
                "sun-hailong/AAAI25-MOS@8d5e07c1 backbone/vit_mos.py:363", table="released code",
                here=({"released_merge": True}, {"released_merge": False})),
    )

    def __init__(
        self, backbone: Backbone, *, lr: Amount = 0.03, epochs: Whole = 20, batch_size: Count = 48, r: Size = 16,
        reg: Amount = 0.1, merge: Share = 0.1, head_scale: Amount = 0.1, weight_decay: Amount = 5e-4,
        align_epochs: Whole = 30, align_lr: Amount = 0.005, lookups: Count = 4, released_merge: bool = True,
        at: Text = r"blocks\.\d+",
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.r, self.reg, self.merge, self.head_scale = r, reg, merge, head_scale
        self.weight_decay, self.align_epochs, self.align_lr = weight_decay, align_epochs, align_lr
        self.lookups, self.at, self.released_merge = lookups, at, released_merge
        self.adapters = attach(backbone, "adaptformer", at, r=r)
        self.gaussians = Gaussians(backbone.num_features)
        self.nearest = PrototypeHead(backbone.num_features)
        self.task: list[int] = []  # of each column of the head

    def make_head(self) -> Head:
        return LinearHead(self.backbone.num_features, std=0.02)

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        self.nearest.grow(exp.space)
        if self.task:
            before = self.adapters.names[-1]
            self.adapters.add(f"task{len(self.adapters.names)}")
            now = self.adapters.names[-1]
            for (_, new), (_, old) in zip(self.adapters.each(now), self.adapters.each(before), strict=True):
                new.load_state_dict(old.state_dict())
        self.task += [len(self.adapters.names) - 1] * (len(self.head.space) - len(self.task))
        self.adapters.use(self.adapters.names[-1])
        self.adapters.train_only(self.adapters.names[-1])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        with ExitStack() as hooks:
            for site in self.adapters.sites.values() if self.released_merge else ():
                hooks.callback(site.register_forward_pre_hook(lambda *_: self.draw_together()).remove)
            features = self.backbone.forward_features(batch.x)
        rows = torch.cat([self.gaussians.means.to(features), features])
        apart = F.cross_entropy(rows @ rows.T / 0.8, torch.arange(len(rows), device=rows.device))
        return self.loss(self.head(features), batch.y, among=self.current) + self.reg * apart

    def configure_optimizers(self) -> Any:
        body, head = self.rates(self.lr * self.head_scale)
        return self.sgd([body, head], self.weight_decay)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.draw_together()

    def draw_together(self) -> None:
        """One merge of all blocks. New storage: a backward pass in the making keeps the values that it used."""
        *earlier, now = ([p for _, a in self.adapters.each(n) for p in a.parameters()] for n in self.adapters.names)
        for p, mean in zip(now if earlier else (), mean_of(earlier), strict=True):
            p.data = merged(p.data, mean.detach(), self.merge)

    def end(self, exp: Experience) -> None:
        self.adapters.train_only()
        self.gaussians.add(*self.embed(exp))
        self.adapters.use("default")
        self.nearest.add(*self.embed(exp))
        if len(self.adapters.names) > 1:
            self.align()

    @torch.enable_grad()
    def align(self) -> None:
        """Train the head on features drawn from all classes' Gaussians."""
        draw, classes = self.rng.on(self.device), len(self.gaussians.labels)
        rows = self.head.parameters()
        optimizer = torch.optim.SGD(rows, lr=self.align_lr, momentum=0.9, weight_decay=self.weight_decay)
        schedule = cosine(optimizer, self.align_epochs)["lr_scheduler"]["scheduler"]
        for _ in range(self.align_epochs):
            x, y = self.gaussians.sample(5 * self.batch_size, draw)
            for part in torch.randperm(len(x), generator=draw, device=x.device).chunk(classes):
                optimizer.zero_grad()
                self.loss(self.head(x[part]), y[part]).backward()
                optimizer.step()
            schedule.step()

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        before, features = self.adapters.used, []
        try:
            for name in self.adapters.names:
                self.adapters.use(name)
                features.append(self.backbone.forward_features(x))
        finally:
            self.adapters.use(*before)
        task_of = torch.tensor(self.task, device=x.device)
        near = self.nearest(features[0])
        heads = torch.stack([self.head(f) for f in features])  # (tasks, N, classes)
        chosen, _ = look_up(near, heads, task_of, self.lookups)
        answer = heads[chosen, torch.arange(len(x), device=x.device)]
        return align_columns(score(near, answer, len(features)).log(), self.head.space, space)

"""MOS (Sun et al., "MOS: Model Surgery for Pre-Trained Model-Based Class-Incremental Learning", AAAI 2025, arXiv
2412.09441, github.com/sun-hailong/AAAI25-MOS): an adapter per task, merged softly; the model looks up which to use."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench import Backbone, Batch, Experience, LabelSpace, PrototypeHead, attach, select
from cl_bench.ranges import Amount, Count, Share, Size, Text, Whole

from ._adapted import Adapted, cosine
from ._gaussians import Gaussians

__all__ = ["MOS"]


class MOS(Adapted):
    """Per experience a new adapter that starts as a copy of the last and is drawn to the mean of all earlier ones.

    Loss: cross-entropy among the current classes plus ``reg * CE(M M^T / 0.8, identity)`` with M the stored class means
    above the batch's features, not normalised. After each step ``theta <- (1 - merge) theta + merge * mean(earlier)``.
    Then means and covariances of the new classes are kept, and from the second experience on the head is trained on
    draws from all of them. Cosine prototypes under the first adapter say where to start.

    Answering: prototypes name a class and so a task; the head under that task's adapter names a class again; at most
    ``lookups`` times, until the task stays. The score is softmax(head) + softmax(t * prototypes), returned as its
    logarithm.

    Deviations: the merge is done once per optimizer step on the adapter at hand. The authors' code does it in every
    block of every forward pass, at evaluation on stored adapters too, so that results depend on how often one measures.

    Args:
        r: bottleneck, clipped to the width; reg, merge: see above; head_scale: the head's rate relative to lr.
        align_epochs, align_lr: training of the head on draws (5 batches per class and epoch).
        at: anchored pattern of the blocks.
    """

    family: ClassVar[str] = "adapter"
    paper: ClassVar[str] = "Sun et al., MOS, AAAI 2025"

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 0.03,
        epochs: Whole = 20,
        batch_size: Count = 48,
        r: Size = 16,
        reg: Amount = 0.1,
        merge: Share = 0.1,
        head_scale: Amount = 0.1,
        weight_decay: Amount = 5e-4,
        align_epochs: Whole = 30,
        align_lr: Amount = 0.005,
        lookups: Whole = 4,
        at: Text = r"blocks\.\d+",
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.r, self.reg, self.merge, self.head_scale = r, reg, merge, head_scale
        self.weight_decay, self.align_epochs, self.align_lr = weight_decay, align_epochs, align_lr
        self.lookups, self.at = lookups, at
        self.adapters = attach(backbone, "adaptformer", at, r=r)
        self.gaussians = Gaussians(backbone.num_features)
        self.nearest = PrototypeHead(backbone.num_features)
        self.task: list[int] = []  # of each column of the head

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        self.nearest.grow(exp.space)
        if self.task:
            before = self.adapters.names[-1]
            self.adapters.add(f"task{len(self.adapters.names)}")
            for (_, new), (_, old) in zip(
                self.adapters.each(self.adapters.names[-1]), self.adapters.each(before), strict=True
            ):
                new.load_state_dict(old.state_dict())
        self.task += [len(self.adapters.names) - 1] * (len(self.head.space) - len(self.task))
        self.adapters.use(self.adapters.names[-1])
        self.adapters.train_only(self.adapters.names[-1])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        features = self.backbone.forward_features(batch.x)
        rows = torch.cat([self.gaussians.means.to(features), features])
        apart = F.cross_entropy(rows @ rows.T / 0.8, torch.arange(len(rows), device=rows.device))
        return self.loss(self.head(features), batch.y, among=self.current) + self.reg * apart

    def configure_optimizers(self) -> Any:
        mine = [p for p in self.adapters.parameters() if p.requires_grad]
        head = {"params": list(self.head.parameters()), "lr": self.lr * self.head_scale}
        return self.sgd([{"params": mine}, head], self.weight_decay)

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        names = self.adapters.names
        if len(names) == 1:
            return
        banks = [[p for _, a in self.adapters.each(n) for p in a.parameters()] for n in names]
        for now, *earlier in zip(banks[-1], *banks[:-1], strict=True):
            now.lerp_(torch.stack(earlier).mean(0), self.merge)

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
        optimizer = torch.optim.SGD(
            self.head.parameters(), lr=self.align_lr, momentum=0.9, weight_decay=self.weight_decay
        )
        schedule = cosine(optimizer, self.align_epochs)["lr_scheduler"]["scheduler"]
        for _ in range(self.align_epochs):
            x, y = self.gaussians.sample(5 * self.batch_size, draw)
            for rows in torch.randperm(len(x), generator=draw, device=x.device).chunk(classes):
                optimizer.zero_grad()
                self.loss(self.head(x[rows]), y[rows]).backward()
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
        rows = torch.arange(len(x), device=x.device)
        chosen = task_of[near.argmax(1)]
        for _ in range(self.lookups):
            again = task_of[heads[chosen, rows].argmax(1)]
            if torch.equal(again, chosen):
                break
            chosen = again
        score = heads[chosen, rows].softmax(1) + (len(features) * near).softmax(1)
        return select(score.log(), self.head.space, space)

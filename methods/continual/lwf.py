"""Li and Hoiem, "Learning without Forgetting", ECCV 2016 / TPAMI 2018.

The network answers new images for the old classes as it did before the new classes came: distillation from a frozen
copy of itself, on new images alone.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench import Backbone, Batch, Experience, LabelSpace, Method, align_columns
from cl_bench.ranges import Amount, Count, Positive, Whole

from .._differs import Differs
from ._decay import adamw

__all__ = ["Lwf"]


class Lwf(Method):
    """Learning without Forgetting: cross-entropy on the new classes, distillation on the old ones.

    L = CE(y, softmax(z_new)) + strength * CE(softmax(z'_old / T), softmax(z_old / T)), z' from the copy of the network
    taken before the experience. As in the paper, new rows of the classifier are warmed up alone first, the trunk in
    evaluation mode. AdamW (betas 0.9 and 0.999, decay 0.01, none on the head, whose old rows the warm-up does not reach).

    ``variant``:

    - ``paper``: cross-entropy among the new classes, old answers from before the warm-up; as in FACIL
      (src/approach/lwf.py), which adds 1e-5 to its probabilities.
    - ``mammoth`` (aimagelab/mammoth, models/lwf.py): cross-entropy over all classes seen, old answers taken after the
      warm-up; its weight is 0.5. It asks the old network once, about images without augmentation.

    Deviations: the old classes are distilled as one softmax (as FACIL and Mammoth do), since a class-incremental answer is
    taken over all of them, where the paper has one softmax per old task; AdamW in place of SGD with momentum.

    Args:
        strength: the paper's lambda_o.
        temperature: the paper's T; gradients are not rescaled by T^2.
        warmup: epochs, before the others, in which only the classifier learns (from the second experience on).
    """

    family: ClassVar[str] = "regularisation"
    paper: ClassVar[str] = "Li & Hoiem, ECCV 2016 / TPAMI 2018"
    shares_batches: ClassVar[bool] = True
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("Mammoth has cross-entropy over all classes seen and takes the old answers after the warm-up.",
                "aimagelab/mammoth@e75a491c models/lwf.py:74", table="Mammoth's own tables are from its code",
                here=({"variant": "paper"}, {"variant": "mammoth", "strength": 0.5})),
        Differs("FACIL adds 1e-5 to the probabilities that it distils.",
                "mmasana/FACIL@e09d2c83 src/approach/lwf.py:129"),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-3,
        epochs: Whole = 5,
        batch_size: Count = 32,
        strength: Amount = 1.0,
        temperature: Positive = 2.0,
        warmup: Whole = 1,
        variant: Literal["paper", "mammoth"] = "paper",
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.variant = variant
        self.strength, self.temperature, self.warmup = strength, temperature, warmup
        self.teacher: nn.ModuleList | None = None
        self.old = LabelSpace()

    def begin(self, exp: Experience) -> None:
        self.old = self.seen
        super().begin(exp)

    def epochs_for(self, exp: Experience) -> int:
        return self.epochs + (self.warmup if self.teacher is not None else 0)

    def configure_optimizers(self) -> Any:
        return adamw(self, masked=True)

    def on_train_epoch_start(self) -> None:
        if self.variant == "mammoth" and self.teacher is not None and self.current_epoch == self.warmup:
            self.remember()
        self.backbone.train(self.teacher is None or self.current_epoch >= self.warmup)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.teacher is None:
            return self.loss(self(batch.x), batch.y, self.current)
        if self.current_epoch < self.warmup:
            with torch.no_grad():
                features = self.backbone.forward_features(batch.x)
            return self.loss(self.head(features), batch.y, self.current)
        logits = self(batch.x)
        with torch.no_grad():
            before = self.teacher[1](self.teacher[0].forward_features(batch.x))
        old = align_columns(logits, self.head.space, self.old)
        kept = distillation(old, align_columns(before, self.teacher[1].space, self.old), self.temperature)
        among = self.seen if self.variant == "mammoth" else self.current
        return self.loss(logits, batch.y, among) + self.strength * kept

    def end(self, exp: Experience) -> None:
        self.remember()

    def remember(self) -> None:
        """Keep the network as it answers now."""
        self.teacher = nn.ModuleList([copy.deepcopy(self.backbone), copy.deepcopy(self.head)])
        self.teacher.requires_grad_(False)
        self.teacher.eval()

    def train(self, mode: bool = True) -> Lwf:
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self


def distillation(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Cross-entropy between the softened answers, mean over images; both arguments are logits (N, C)."""
    q = F.softmax(target / temperature, dim=1)
    return -(q * F.log_softmax(logits / temperature, dim=1)).sum(1).mean()

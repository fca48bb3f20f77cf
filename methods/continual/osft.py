"""OSFT (Nayak et al., "Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning", ICLR 2026,
arXiv 2504.07097): train only what is orthogonal to the weights' strong singular directions."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from cl_bench import Backbone, Batch, Experience, attach
from cl_bench.adapters import FUSED4
from cl_bench.ranges import Amount, Count, Share, Text, Whole

from .._differs import Differs
from ._frozen_trunk import FrozenTrunk

__all__ = ["OSFT"]


class OSFT(FrozenTrunk):
    """Keeps each weight's top singular directions and fine-tunes the rest orthogonally to them, again per experience.

    Before every experience each target weight is factored anew, so that what was just learned is protected if it is
    strong. Gradients of the low factors are projected before the step and the factors after it, because Adam's
    element-wise scaling undoes the former. The projection is factor-wise, as in the authors' code, which is stricter
    than the paper's two-sided rule.

    Deviations: published for language models. The vision setting: the four linears of each block, a growing linear
    head, cross-entropy among the current classes, AdamW 5e-5 without decay. The share that is kept at experience t
    (from 0) is ``min(keep + t * keep_growth, 0.95)`` (PEFT's example raises it from 0.3 by 0.2 per task); the authors'
    scripts protect nothing at first, which would forget the pretraining that an image backbone starts with.

    Args:
        keep, keep_growth: protected share of singular directions at the first experience, and its growth.
        head_lr: learning rate of the head, None = ``lr``. A new head needs a larger one than a pretrained trunk.
        at: anchored pattern of layer names.
    """

    family: ClassVar[str] = "subspace"
    paper: ClassVar[str] = "Nayak et al., Sculpting Subspaces (OSFT), ICLR 2026"
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("Each factor is kept orthogonal by itself, which is stricter than the paper's two-sided rule.",
                "Red-Hat-AI-Innovation-Team/orthogonal-subspace-learning@a5f91f6a notebooks/finetune_svd.py:239"),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 5e-5,
        epochs: Whole = 5,
        batch_size: Count = 32,
        keep: Share = 0.3,
        keep_growth: Share = 0.1,
        head_lr: Amount | None = 1e-3,
        at: Text = FUSED4,
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.keep, self.keep_growth, self.head_lr, self.at = keep, keep_growth, head_lr, at
        self.adapters = attach(backbone, "osft", at, keep=keep)
        self.learned = 0

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        if self.learned:  # a new split of the weights that the last experience left
            self.adapters.drop("default")
            self.adapters.settings["keep"] = min(self.keep + self.learned * self.keep_growth, 0.95)
            self.adapters.add("default")
            self.adapters.use("default")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.loss(self(batch.x), batch.y, among=self.current)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.rates(self.head_lr), weight_decay=0.0)

    def on_after_backward(self) -> None:
        self.adapters.after_backward()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.adapters.after_step()

    def end(self, exp: Experience) -> None:
        self.adapters.merge_()
        self.learned += 1

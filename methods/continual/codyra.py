"""CoDyRA (Lu et al., "Take Only What You Need: Rank Minimization as an Implicit Forgetting Regularizer in Continual
Learning", arXiv 2412.01004, github.com/Artificer-AI-Lab/CoDyRA): LoRA whose ranks are closed while training; survivors
are merged."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from cl_bench import Backbone, Batch, Experience, attach
from cl_bench.adapters import FUSED4
from cl_bench.adapters.codyra import CoDyRA as Gated
from cl_bench.adapters.codyra import walk
from cl_bench.ranges import Amount, Count, Share, Size, Text, Whole

from .._differs import Differs
from ._frozen_trunk import FrozenTrunk, cosine

__all__ = ["CoDyRA"]

class CoDyRA(FrozenTrunk):
    """Rank-gated LoRA on every linear of the blocks; a proximal step closes gates in the second half of training.

    ``W + B diag(w) A``; after each optimizer step of the second half ``w <- sign(w) max(|w| - k, 0)`` with k walking a
    linear grid of 50 levels from 0 to ``kappa_max``; as released (models/codyra.py), the walk starts at level 1,
    which makes the sum of k 0.65 over 500 steps. AdamW (betas 0.9 and 0.9999, no decay), its cosine stepped per step.
    At the end of an experience the open ranks are merged and A, B, w are drawn again: no growth, no cost at test
    time.

    Deviations: the published form is for CLIP and trains both towers against text embeddings (image-to-text and
    text-to-image losses). Here a vision backbone has a growing linear head, so only the image side is used:
    cross-entropy with the classes of earlier experiences masked out. The update is merged when the experience ends
    and not when the next begins, which gives the same answers. The proximal step is the exact one; ``released_prox``
    repeats the authors' code, which closes everything below twice the threshold.

    Args:
        iterations: optimizer steps per experience, exactly (published: 500 of 64 images); used while ``epochs`` is 0. The
            threshold is not scaled by lr or length, so far fewer steps close fewer ranks. Released, fewer than 50 steps after
            the dense half would close none at all; here the levels are then spread over what there is.
        epochs: passes over an experience instead, if not 0.
        at: anchored pattern of layer names; the default is the four linears of timm's blocks.
        rows: parts of a fused qkv projection with a gated LoRA each (the paper splits q, k and v).
        head_lr: learning rate of the head, which the published form does not have; None = ``lr``.
    """

    family: ClassVar[str] = "adapter"
    paper: ClassVar[str] = "Lu et al., CoDyRA, arXiv 2412.01004"
    shares_batches: ClassVar[bool] = True
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("Three statements in sequence close every gate below twice the threshold; the paper's proximal "
                "step closes those below it.",
                "Artificer-AI-Lab/CoDyRA@c1691e4c models/codyra.py", table="released code",
                here=({"released_prox": False}, {"released_prox": True}),
                both={"lr": 0.002, "iterations": 30, "kappa_max": 0.09}),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 5e-4,
        epochs: Whole = 0,
        batch_size: Count = 64,
        iterations: Count = 500,
        rank: Size = 16,
        kappa_max: Amount = 5e-3,
        dense_fraction: Share = 0.5,
        at: Text = FUSED4,
        rows: tuple[str, ...] = ("q", "k", "v"),
        released_prox: bool = False,
        head_lr: Amount | None = None,
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.iterations, self.rank, self.kappa_max, self.dense_fraction = iterations, rank, kappa_max, dense_fraction
        self.at, self.rows, self.released_prox, self.head_lr = at, rows, released_prox, head_lr
        how = {"r": rank, "released_prox": released_prox, "kappa_max": kappa_max, "dense_fraction": dense_fraction}
        self.adapters = attach(backbone, "codyra", at, rows=rows, **how)  # type: ignore[arg-type]
        self.step = 0
        self.open_ranks: list[dict[str, int]] = []

    def epochs_for(self, exp: Experience) -> int:
        per_epoch = math.ceil(len(self.training_data(exp)) / self.batch_size)  # type: ignore[arg-type]
        return self.epochs if self.epochs else max(1, math.ceil(self.iterations / per_epoch))

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        self.step = 0
        self.total_steps = self.total_steps if self.epochs else self.iterations

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if self.step >= self.total_steps else None  # the epoch that the last step falls into ends there

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.loss(self(batch.x), batch.y, among=self.current)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.rates(self.head_lr), lr=self.lr, betas=(0.9, 0.9999), weight_decay=0.0)
        return cosine(optimizer, self.total_steps)

    def threshold(self, step: int) -> float:
        """The proximal step's size after optimizer step ``step`` (from 1)."""
        return walk(step - 1, self.total_steps, self.dense_fraction, self.kappa_max)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.step += 1
        self.adapters.after_step(self.step, self.total_steps)

    def end(self, exp: Experience) -> None:
        ranks: dict[str, int] = {}
        for at, adapter in self.adapters.each():
            assert isinstance(adapter, Gated)
            ranks[at] = ranks.get(at, 0) + adapter.open_ranks
        self.open_ranks.append(ranks)
        self.adapters.merge_()

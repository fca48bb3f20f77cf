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
from cl_bench.ranges import Amount, Count, Share, Size, Text, Whole

from ._adapted import Adapted, cosine

__all__ = ["CoDyRA"]

_LEVELS = 50


class CoDyRA(Adapted):
    """Rank-gated LoRA on every linear of the blocks; a proximal step closes gates in the second half of training.

    ``W + B diag(w) A``; after each optimizer step of the second half ``w <- sign(w) max(|w| - k, 0)`` with k walking a
    linear grid of 50 levels from 0 to ``kappa_max``. At the end of an experience the open ranks are merged and A, B, w
    are drawn again: no growth, no cost at test time.

    Deviations: the published form is for CLIP and trains both towers against text embeddings (image-to-text and
    text-to-image losses). Here a vision backbone has a growing linear head, so only the image side is used:
    cross-entropy with the classes of earlier experiences masked out. The update is merged when the experience ends
    and not when the next begins, which gives the same answers. The proximal step is the exact one; ``released_prox``
    repeats the authors' code, which closes everything below twice the threshold.

    Args:
        iterations: optimizer steps per experience (published: 500 of 64 images); used while ``epochs`` is 0. The
            threshold is not scaled by lr or length, so far fewer steps close fewer ranks.
        epochs: passes over an experience instead, if not 0.
        at: anchored pattern of layer names; the default is the four linears of timm's blocks.
        rows: parts of a fused qkv projection with a gated LoRA each (the paper splits q, k and v).
        head_lr: learning rate of the head, which the published form does not have; None = ``lr``.
    """

    family: ClassVar[str] = "adapter"
    paper: ClassVar[str] = "Lu et al., CoDyRA, arXiv 2412.01004"

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
        self.adapters = attach(backbone, "codyra", at, rows=rows, r=rank, released_prox=released_prox)
        self.step = 0
        self.open_ranks: list[dict[str, int]] = []

    def epochs_for(self, exp: Experience) -> int:
        per_epoch = math.ceil(len(self.training_data(exp)) / self.batch_size)  # type: ignore[arg-type]
        return self.epochs or max(1, round(self.iterations / per_epoch))

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        self.step = 0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.loss(self(batch.x), batch.y, among=self.current)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.rates(self.head_lr), lr=self.lr, betas=(0.9, 0.9999), weight_decay=0.0)
        return cosine(optimizer, self.total_steps)

    def threshold(self, step: int) -> float:
        """The proximal step's size after optimizer step ``step`` (from 1)."""
        dense = int(self.dense_fraction * self.total_steps)
        if step <= dense:
            return 0.0
        level = (step - dense - 1) * _LEVELS // (self.total_steps - dense)
        return self.kappa_max * min(1.0, level / (_LEVELS - 1))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.step += 1
        kappa = self.threshold(self.step)
        for _, adapter in self.adapters.each():
            assert isinstance(adapter, Gated)
            adapter.threshold = kappa
        self.adapters.after_step()

    def end(self, exp: Experience) -> None:
        ranks: dict[str, int] = {}
        for at, adapter in self.adapters.each():
            assert isinstance(adapter, Gated)
            ranks[at] = ranks.get(at, 0) + adapter.open_ranks
        self.open_ranks.append(ranks)
        self.adapters.merge_()

"""Sequential LoRA (Hu et al., ICLR 2022, arXiv 2106.09685): the adapter baseline of continual learning."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from cl_bench import Backbone, Batch, Experience, attach
from cl_bench.adapters import FUSED4
from cl_bench.ranges import Amount, Count, Size, Text, Whole

from ._frozen_trunk import FrozenTrunk, cosine

__all__ = ["LoRA"]


class LoRA(FrozenTrunk):
    """Trains one low-rank update per experience and merges it into the weights before the next.

    Nothing is done against forgetting; it is what CoDyRA, InfLoRA and O-LoRA compare against.

    Args:
        at: anchored pattern of layer names; the default is the four linears of timm's blocks.
        rows: parts of a fused qkv projection that get an update each.
        r: rank, clipped to the layer's smaller side; alpha: scale numerator, None = r.
        masked: cross-entropy among the current classes only; False takes all classes seen.
        head_lr: learning rate of the head, None = ``lr``.
    """

    family: ClassVar[str] = "adapter"
    paper: ClassVar[str] = "Hu et al., LoRA, ICLR 2022"
    shares_batches: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 5e-4,
        epochs: Whole = 5,
        batch_size: Count = 64,
        r: Size = 16,
        alpha: Amount | None = None,
        at: Text = FUSED4,
        rows: tuple[str, ...] = ("q", "k", "v"),
        masked: bool = True,
        head_lr: Amount | None = None,
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.r, self.alpha, self.at, self.rows, self.masked = r, alpha, at, rows, masked
        self.head_lr = head_lr
        self.adapters = attach(backbone, "lora", at, rows=rows, r=r, alpha=alpha)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.loss(self(batch.x), batch.y, self.current if self.masked else None)

    def configure_optimizers(self) -> Any:
        return cosine(torch.optim.AdamW(self.rates(self.head_lr), lr=self.lr, weight_decay=0.0), self.total_steps)

    def end(self, exp: Experience) -> None:
        self.adapters.merge_()

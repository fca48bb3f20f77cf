"""LAE (Gao et al., ICCV 2023, arXiv 2303.10070, github.com/gqk/LAE): a quick and a slow copy of one adapter; the surer
of the two answers."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from cl_bench import Backbone, Batch, Experience, LabelSpace, UserError, align_columns, attach
from cl_bench.adapters.lora import LoRA
from cl_bench.heads import Head, LinearHead
from cl_bench.ranges import Amount, Count, Share, Size, Text, Whole

from .._differs import Differs
from ._frozen_trunk import FrozenTrunk

__all__ = ["LAE"]


def frozen(learned: int, epoch: int, freeze_epochs: int) -> bool:
    """Whether the adapter stands still in this epoch (from 0) of the experience after ``learned`` others."""
    return learned > 0 and epoch < freeze_epochs


def follow(offline: Tensor, online: Tensor, decay: float) -> Tensor:
    """The offline adapter after a step."""
    return decay * offline + (1 - decay) * online


def surer(online: Tensor, offline: Tensor) -> Tensor:
    """The larger confidence for each image and class, of two softmaxes (N, C)."""
    return torch.maximum(online, offline)


class ScaledLoRA(LoRA):
    """``W + s B A`` with one learned s per matrix that starts at 1 (LAE's calibration)."""

    def __init__(self, weight: Tensor, r: Size = 5) -> None:
        super().__init__(weight, r)
        self.gain = nn.Parameter(torch.ones(()).to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.gain * (self.B @ self.A)


class LAE(FrozenTrunk):
    """Learning, accumulation, ensemble: an online adapter, a moving average of it, and the larger of both confidences.

    From the second experience on, the offline copy (made from the state after the first) follows after every step:
    ``theta_off <- decay theta_off + (1 - decay) theta_on``, while the first ``freeze_epochs`` epochs train the head
    alone. Loss: cross-entropy among the current classes. Answer: the element-wise maximum of both softmaxes over all
    classes seen, returned as its logarithm. Adam (betas 0.9 and 0.999, no decay) at a constant rate.

    Args:
        pet: ``adapter`` (5 hidden units beside attention, one learned scale), ``lora`` (rank 5 on keys and values, a learned
            scale each) or ``prefix`` (10, with compensation, learned scales of keys and of values); scales start at 1.
        blocks: anchored pattern of the attention layers that get one (published: the first five blocks).
    """

    family: ClassVar[str] = "adapter"
    paper: ClassVar[str] = "Gao et al., LAE, ICCV 2023"
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("The prefix has two learned scales, of keys and of values; the paper has one per module.",
                "gqk/LAE@1680e496 libml/model/pet/prefix.py:28", table="released code"),
        Differs("PILOT freezes the adapter in the first epochs of the first task too.",
                "LAMDA-CL/LAMDA-PILOT@52407147 models/lae.py:119", table="the authors' code"),
        Differs("PILOT's slow copy starts as the untrained adapter, the authors' after the first task.",
                "LAMDA-CL/LAMDA-PILOT@52407147 utils/inc_net.py:1115", table="the authors' code"),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 0.0028125,
        epochs: Whole = 5,
        batch_size: Count = 24,
        pet: Literal["adapter", "lora", "prefix"] = "adapter",
        freeze_epochs: Whole = 3,
        decay: Share = 0.9999,
        blocks: Text = r"blocks\.[0-4]\.attn",
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.pet, self.freeze_epochs, self.decay, self.blocks = pet, freeze_epochs, decay, blocks
        if pet == "adapter":
            how = {"r": 5, "scale": 1.0, "learn_scale": True, "act": "gelu", "dropout": 0.0}
            self.adapters = attach(backbone, "adaptformer", blocks, **how)  # type: ignore[arg-type]
        elif pet == "lora":
            self.adapters = attach(backbone, ScaledLoRA, blocks + r"\.qkv", rows=("k", "v"), r=5)
        elif pet == "prefix":
            self.adapters = attach(backbone, "prefix", blocks, n=10, compensate=True, learn_scale=True)
        else:
            raise UserError(f"pet={pet!r} is none of adapter, lora, prefix.")
        self.learned = 0

    def make_head(self) -> Head:
        return LinearHead(self.backbone.num_features, std=0.001)

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        if self.learned == 1:
            self.adapters.add("offline")
            for p, q in self.pairs():
                p.data.copy_(q.data)
            self.adapters.train_only("default")

    def pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """(offline, online) parameters."""
        off, on = ([p for _, a in self.adapters.each(n) for p in a.parameters()] for n in ("offline", "default"))
        return list(zip(off, on, strict=True))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.loss(self(batch.x), batch.y, among=self.current)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.trained(), lr=self.lr)

    def on_after_backward(self) -> None:
        if frozen(self.learned, self.current_epoch, self.freeze_epochs):
            for p in self.adapters.parameters():
                p.grad = None  # Adam passes over it: neither a step nor a moment

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.learned:
            for off, on in self.pairs():
                off.copy_(follow(off, on, self.decay))

    def end(self, exp: Experience) -> None:
        self.learned += 1

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        best = self(x).softmax(1)
        if "offline" in self.adapters.names:
            self.adapters.use("offline")
            try:
                best = surer(best, self(x).softmax(1))
            finally:
                self.adapters.use("default")
        return align_columns(best.log(), self.head.space, space)

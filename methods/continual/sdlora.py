"""SD-LoRA (Wu et al., ICLR 2025, arXiv 2501.13198, github.com/WuYichen-97/SD-Lora-CL): old directions stay, their
magnitudes go on learning."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cl_bench import Backbone, Batch, Experience, attach
from cl_bench.adapters.lora import LoRA
from cl_bench.heads import Head, LinearHead
from cl_bench.ranges import Amount, Count, Size, Text, Whole

from .._differs import Differs
from ._frozen_trunk import FrozenTrunk

__all__ = ["SDLoRA"]

_START = 0.8


class Direction(LoRA):
    """``W + magnitude * B A``, divided by ``|B| |A|`` once the task is over; the magnitude is one for all layers."""

    def __init__(self, weight: Tensor, r: Size = 10) -> None:
        super().__init__(weight, r)
        self.magnitude = nn.Parameter(torch.tensor(_START).to(weight))
        self.old = False

    def forward(self, weight: Tensor) -> Tensor:
        return weight + directed(self.A, self.B, self.magnitude, self.old)


def directed(a: Tensor, b: Tensor, magnitude: Tensor, old: bool) -> Tensor:
    """``magnitude * B A``, divided by ``|B| |A|`` where the direction is an old one."""
    update = b @ a
    return magnitude * (update / (b.norm() * a.norm()).clamp(min=1e-12) if old else update)


class SDLoRA(FrozenTrunk):
    """``W + sum_i alpha_i B_i A_i / (|B_i| |A_i|) + alpha_t B_t A_t``: trains B_t, A_t, every alpha and the head.

    One alpha per task, shared by all layers and by q and v, set to 0.8 again at the start of every experience. The
    current direction is not normalised, old ones are, as in the authors' code: the output jumps when a task becomes
    old. Cross-entropy among the current classes; SGD with momentum 0.9 at a constant rate, no decay; rows of the head
    from U(+-sqrt(3 / d)), biases zero. The variants with falling rank (RR) and with dropped directions (KD) are not
    included.

    Difference to the authors' code: its class for evaluation (backbone/lora.py, _LoRA_qkv_timm_eval) overwrites the sum,
    so that only the newest direction answers, at its full length; here the model that was trained answers.

    Args:
        r: rank, clipped to the width.
        at: anchored pattern of fused qkv layers; query and value rows are adapted.
    """

    family: ClassVar[str] = "adapter"
    paper: ClassVar[str] = "Wu et al., SD-LoRA, ICLR 2025"
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("The class for evaluation overwrites the sum of directions, so the newest alone would answer.",
                "WuYichen-97/SD-Lora-CL@8bacded6 backbone/lora.py:197"),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 8e-3,
        epochs: Whole = 20,
        batch_size: Count = 128,
        r: Size = 10,
        at: Text = r"(.*\.)?blocks\.\d+\.attn\.qkv",
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.r, self.at = r, at
        self.adapters = attach(backbone, Direction, at, rows=("q", "v"), r=r)
        self.learned = 0

    def make_head(self) -> Head:
        return LinearHead(self.backbone.num_features, bound=(3 / self.backbone.num_features) ** 0.5)

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        if self.learned:
            self.adapters.add(f"task{self.learned}")
        names = self.adapters.names
        self.adapters.use(*names)
        self.adapters.train_only(names[-1])
        for name in names:
            magnitude = nn.Parameter(torch.tensor(_START, device=self.device, dtype=self.dtype))
            for _, adapter in self.adapters.each(name):
                assert isinstance(adapter, Direction)
                adapter.magnitude = magnitude
                adapter.old = name != names[-1]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.loss(self(batch.x), batch.y, among=self.current)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.trained(), lr=self.lr, momentum=0.9)

    def end(self, exp: Experience) -> None:
        self.learned += 1

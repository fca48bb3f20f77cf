"""InfLoRA (Liang & Li, CVPR 2024, arXiv 2404.00228, github.com/liangyanshuo/InfLoRA): low-rank updates whose row space
lies in the new inputs' span and outside the old ones'."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from cl_bench import Backbone, Batch, Experience, attach
from cl_bench.adapters import input_grams
from cl_bench.adapters.lora import LoRA
from cl_bench.ranges import Amount, Count, Share, Size, Text, Whole

from .._differs import Differs
from ._dualgpm import remember, share_of, start
from ._frozen_trunk import FrozenTrunk, planned, truncated_cosine

__all__ = ["InfLoRA"]


class InfLoRA(FrozenTrunk):
    """Fixes A from the inputs' covariance with the old tasks' subspace taken out, and trains B on keys and values.

    Before an experience, C = mean of x^T x over each attention's inputs; the part that old tasks use is removed; the top
    r left singular vectors of what remains, over sqrt(3), are A for keys and values alike. B and the head are trained
    with cross-entropy among the current classes, Adam (betas 0.9 and 0.999, no decay), its rate the released truncated
    cosine, which stays at full rate for two epochs. Afterwards C is taken again with the trained model and the stored
    subspace grows until it holds the share ``eps_t = lamda + (1 - lamda) t / tasks`` of the squared singular values of C
    (C is second order already, so this is a fourth power of activations: thresholds of GPM do not carry over). Where the
    subspace exceeds half the width, its complement is kept (DualGPM). Updates are merged, so only bases are stored.

    ``variant=paper`` is the paper's text: a cosine that falls from the second epoch on, and a first basis of the fewest
    directions that hold the share, where the released code stops one short of them.

    Args:
        r: rank, clipped to the width.
        lamda: the share of energy that counts as used, at the first experience.
        tasks: how many experiences there will be, for the share's growth; 0 = as many as the scenario has (10 where
            nothing says it).
        at: anchored pattern of fused qkv layers; their key and value rows are adapted.

    Raises:
        UserError: if there are more experiences than ``tasks``: everything would count as used.
    """

    family: ClassVar[str] = "subspace"
    paper: ClassVar[str] = "Liang & Li, InfLoRA, CVPR 2024"
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("The schedule answers for epoch 0 twice, so the rate stays full for two epochs.",
                "liangyanshuo/InfLoRA@e08b00ed utils/schedulers.py:42", table="released code",
                here=({"variant": "released"}, {"variant": "paper"}), both={"lr": 0.02}),
        Differs("The first basis has one direction fewer than hold the threshold; the choice above has both differences.",
                "liangyanshuo/InfLoRA@e08b00ed methods/inflora.py:332", table="released code"),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 5e-4,
        epochs: Whole = 20,
        batch_size: Count = 128,
        r: Size = 10,
        lamda: Share = 0.95,
        tasks: Whole = 0,
        variant: Literal["released", "paper"] = "released",
        at: Text = r"(.*\.)?blocks\.\d+\.attn\.qkv",
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.r, self.lamda, self.tasks, self.variant, self.at = r, lamda, tasks, variant, at
        self.adapters = attach(backbone, "lora", at, rows=("k", "v"), r=r)
        for _, adapter in self.adapters.each():
            assert isinstance(adapter, LoRA)
            adapter.A.requires_grad_(False)
        # Per site an orthonormal basis (d, k) of the old inputs' space, or of its complement.
        self.bases: dict[str, Tensor] = {}
        self.complement: dict[str, bool] = {}
        self.learned = 0
        self.planned = tasks or 10

    def covariances(self, exp: Experience) -> dict[str, Tensor]:
        """Per site C (d, d), float64, under the present model."""
        images = (b.x for b in self.shuffled(exp, self.batch_size))
        return input_grams(self.backbone, self.at, images)

    def plan(self, experiences: int) -> None:
        self.planned = planned(self.tasks, experiences)

    @torch.no_grad()
    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        planned(self.planned, self.learned + 1)
        found = self.covariances(exp)
        for site, adapter in self.adapters.each():
            assert isinstance(adapter, LoRA)
            adapter.A.copy_(start(found[site], self.bases.get(site), self.complement.get(site, False), adapter.r))
            adapter.B.zero_()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.loss(self(batch.x), batch.y, among=self.current)

    def configure_optimizers(self) -> Any:
        return truncated_cosine(torch.optim.Adam(self.trained(), lr=self.lr), self.epochs, self.variant == "released")

    @torch.no_grad()
    def end(self, exp: Experience) -> None:
        share = share_of(self.lamda, self.learned, self.planned)
        self.adapters.merge_()
        for site, c in self.covariances(exp).items():
            kept = remember(c, self.bases.get(site), self.complement.get(site, False), share, self.variant == "released")
            self.bases[site], self.complement[site] = kept
        self.learned += 1

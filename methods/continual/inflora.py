"""InfLoRA (Liang & Li, CVPR 2024, arXiv 2404.00228, github.com/liangyanshuo/InfLoRA): low-rank updates whose row space
lies in the new inputs' span and outside the old ones'."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from cl_bench import Backbone, Batch, Experience, attach
from cl_bench.adapters import input_grams
from cl_bench.adapters.lora import LoRA
from cl_bench.ranges import Amount, Count, Share, Size, Text, Whole

from ._adapted import Adapted, truncated_cosine

__all__ = ["InfLoRA"]


class InfLoRA(Adapted):
    """Fixes A from the inputs' covariance with the old tasks' subspace taken out, and trains B on keys and values.

    Before an experience, C = mean of x^T x over each attention's inputs; the part that old tasks use is removed; the top
    r left singular vectors of what remains, over sqrt(3), are A for keys and values alike. B and the head are trained
    with cross-entropy among the current classes. Afterwards C is taken again with the trained model and the stored
    subspace grows until it holds the share ``eps_t = lamda + (1 - lamda) t / tasks`` of the squared singular values of C
    (C is second order already, so this is a fourth power of activations: thresholds of GPM do not carry over). Where the
    subspace exceeds half the width, its complement is kept (DualGPM). Updates are merged, so only bases are stored.

    Deviations: if already the first task's subspace exceeds half the width the authors' code keeps the space where it
    means the complement; here it is the complement.

    Args:
        r: rank, clipped to the width.
        lamda: the share of energy that counts as used, at the first experience.
        tasks: how many experiences there will be, for the share's growth (published: 10).
        at: anchored pattern of fused qkv layers; their key and value rows are adapted.
    """

    family: ClassVar[str] = "subspace"
    paper: ClassVar[str] = "Liang & Li, InfLoRA, CVPR 2024"

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 5e-4,
        epochs: Whole = 20,
        batch_size: Count = 128,
        r: Size = 10,
        lamda: Share = 0.95,
        tasks: Size = 10,
        at: Text = r"(.*\.)?blocks\.\d+\.attn\.qkv",
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.r, self.lamda, self.tasks, self.at = r, lamda, tasks, at
        self.adapters = attach(backbone, "lora", at, rows=("k", "v"), r=r)
        for _, adapter in self.adapters.each():
            assert isinstance(adapter, LoRA)
            adapter.A.requires_grad_(False)
        # Per site an orthonormal basis (d, k) of the old inputs' space, or of its complement.
        self.bases: dict[str, Tensor] = {}
        self.complement: dict[str, bool] = {}
        self.learned = 0

    def covariances(self, exp: Experience) -> dict[str, Tensor]:
        """Per site C (d, d), float64, under the present model."""
        images = (b.x for b in self.shuffled(exp, self.batch_size))
        return input_grams(self.backbone, self.at, images)

    def unused(self, site: str, c: Tensor) -> Tensor:
        """C without what old tasks use."""
        if site not in self.bases:
            return c
        basis = self.bases[site].to(c)
        inside = basis @ (basis.T @ c)
        return inside if self.complement[site] else c - inside

    @torch.no_grad()
    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        found = self.covariances(exp)
        for site, adapter in self.adapters.each():
            assert isinstance(adapter, LoRA)
            u = torch.linalg.svd(self.unused(site, found[site]))[0]
            adapter.A.copy_(u[:, : adapter.r].T / 3**0.5)
            adapter.B.zero_()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.loss(self(batch.x), batch.y, among=self.current)

    def configure_optimizers(self) -> Any:
        return truncated_cosine(torch.optim.Adam(self.trained(), lr=self.lr), self.epochs)

    @torch.no_grad()
    def end(self, exp: Experience) -> None:
        share = min(1.0, self.lamda + (1 - self.lamda) * self.learned / self.tasks)
        self.adapters.merge_()
        for site, c in self.covariances(exp).items():
            self._remember(site, c, share)
        self.learned += 1

    def _remember(self, site: str, c: Tensor, share: float) -> None:
        total = torch.linalg.svdvals(c).square().sum()
        u, s, _ = torch.linalg.svd(self.unused(site, c))
        energy = s.square() / total
        if self.complement.get(site, False):
            # Take leading directions out of the complement until the energy left in it is below 1 - share.
            left = energy.sum() - torch.cat([energy.new_zeros(1), energy.cumsum(0)])
            n = int((left >= 1 - share).sum())
            keep = self.bases[site].to(c)
            rest = keep - u[:, :n] @ (u[:, :n].T @ keep)
            basis = torch.linalg.svd(rest, full_matrices=False)[0][:, : max(0, keep.shape[1] - n)]
        else:
            # Add directions until the space holds the share.
            held = 1 - energy.sum() + torch.cat([energy.new_zeros(1), energy.cumsum(0)])
            n = min(int((held < share).sum()), len(s))
            basis = u[:, :n] if site not in self.bases else torch.cat([self.bases[site].to(c), u[:, :n]], 1)
            basis = torch.linalg.qr(basis)[0]
            if basis.shape[1] > len(c) / 2:
                basis = torch.linalg.svd(basis)[0][:, basis.shape[1] :]
                self.complement[site] = True
        self.complement.setdefault(site, False)
        self.bases[site] = basis

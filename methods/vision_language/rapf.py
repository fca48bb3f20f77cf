"""RAPF: one linear adapter on the image feature, replay from Gaussians, fusion in the old matrix's singular basis."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from cl_bench import Backbone, Batch, Experience, LabelSpace
from cl_bench.heads import columns_of
from cl_bench.ranges import Amount, Count, Positive, Share, Whole

from ._clip import Clip, scaled_cosines

__all__ = ["Rapf"]


class Rapf(Clip):
    """A linear map of the image feature is learned; text similarity finds old classes that new ones may be taken for.

    Huang et al., "Class-Incremental Learning with CLIP: Adaptive Representation Adjustment and Parameter Fusion", ECCV 2024
    (linlany/RAPF), with the settings for CIFAR-100. Cross-entropy among all classes seen on the batch and on samples of the
    old classes' Gaussians, plus a hinge that keeps samples of an old class nearer to its text than to that of a new class
    closer than ``threshold``. After an experience the map is fused with the old one: entries that changed most in the old
    one's left singular basis keep the new value. One template, towers frozen, features computed once.

    Args:
        threshold: distance of unit text features below which a pair is hard.
        mix_bias: added to the share of change.
        beta: samples per class and step are 10 beta, per hard pair 20 beta.
        replayed: old classes per step, taken in turn.
        margin: of the hinge.
        shrink: regularise covariances by their mean diagonal and off-diagonal (published for ImageNet-R and CUB).
    """

    paper: ClassVar[str] = "Huang et al. (RAPF), ECCV 2024"

    def __init__(self, backbone: Backbone, *, lr: Amount = 1e-3, epochs: Whole = 15, batch_size: Count = 100,
                 threshold: Amount = 0.55, mix_bias: Share = 0.6, beta: Positive = 2.0, replayed: Count = 2,
                 margin: Amount = 0.1, shrink: bool = False) -> None:  # fmt: skip
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.threshold, self.mix_bias, self.beta, self.replayed = threshold, mix_bias, beta, replayed
        self.margin, self.shrink = margin, shrink
        self.backbone.requires_grad_(False)
        self.adapter = nn.Linear(backbone.num_features, backbone.num_features, bias=False)
        self.means: dict[int, Tensor] = {}
        self.roots: dict[int, Tensor] = {}
        self.before = torch.zeros(0, 0)
        self.turn = 0

    def training_data(self, exp: Experience) -> Dataset:
        return exp.data if exp.augment is not None else self.features_once(exp)

    @torch.no_grad()
    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        self.before = self.adapter.weight.detach().clone() if self.means else torch.zeros(0, 0)
        self.text = self.prompts(self.seen)
        new = [k for k, i in enumerate(self.seen.ids) if i not in self.means]
        old = [k for k, i in enumerate(self.seen.ids) if i in self.means]
        self.hard = hard_pairs(self.text, old, new, self.threshold)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        with torch.no_grad():
            z = self.backbone.forward_features(batch.x) if batch.x.ndim == 4 else batch.x
        y, scale = columns_of(batch.y, self.seen), self.backbone.logit_scale
        old = list(self.means)
        for i in [old[(self.turn + k) % len(old)] for k in range(min(self.replayed, len(old)))]:
            drawn = self.sample(i, int(10 * self.beta))
            z, y = torch.cat([z, drawn]), torch.cat([y, y.new_full((len(drawn),), self.seen.ids.index(i))])
        self.turn += self.replayed
        loss = F.cross_entropy(scale * F.normalize(self.adapter(z), dim=-1) @ self.text.T, y)
        if self.hard:
            drawn = torch.cat([self.sample(self.seen.ids[i], int(20 * self.beta)) for i, _ in self.hard])
            pairs = torch.tensor(self.hard, device=drawn.device).repeat_interleave(int(20 * self.beta), 0)
            f = F.normalize(self.adapter(drawn), dim=-1)
            loss = loss + hinge(f, self.text[pairs[:, 0]], self.text[pairs[:, 1]], self.margin)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.adapter.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [4, 10], 0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def sample(self, label: int, count: int) -> Tensor:
        """Features drawn from an old class's Gaussian."""
        mean = self.means[label]
        noise = torch.randn(count, len(mean), generator=self.rng.on("cpu"), dtype=mean.dtype).to(mean.device)
        return mean + noise @ self.roots[label].T

    @torch.no_grad()
    def end(self, exp: Experience) -> None:
        data = self.features_once(exp)
        for i in exp.space.ids:
            if len(z := data.x[data.y == i]) > 1:
                self.means[i], cov = gaussian_of(z)
                self.roots[i] = torch.linalg.cholesky(shrunk(cov) if self.shrink else cov)
        if self.before.numel():
            self.adapter.weight.copy_(fused(self.before.to(self.adapter.weight), self.adapter.weight, self.mix_bias))

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        z = self.backbone.forward_features(x)  # before any learning the map is random: the feature itself answers
        f = F.normalize(self.adapter(z) if self.means else z, dim=-1)
        return scaled_cosines(f, self.prompts(space), self.backbone.logit_scale) if len(space) else z.new_zeros(len(z), 0)


def hard_pairs(text: Tensor, old: list[int], new: list[int], threshold: float) -> list[tuple[int, int]]:
    """(old, new) rows of unit ``text`` closer than ``threshold``, by old row."""
    return [(i, j) for i in old for j in new if float((text[i] - text[j]).norm()) < threshold]


def hinge(f: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """Mean of ``relu(-<f, positive> + <f, negative> + margin)`` over rows."""
    return F.relu((f * negative).sum(1) - (f * positive).sum(1) + margin).mean()


def gaussian_of(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance plus 1e-4."""
    return z.mean(0), torch.cov(z.T) + 1e-4 * torch.eye(z.shape[1]).to(z)


def shrunk(cov: Tensor) -> Tensor:
    """Covariance plus its mean diagonal on the diagonal and its mean non-zero off-diagonal beside it."""
    eye = torch.eye(len(cov)).to(cov)
    beside = cov * (1 - eye)
    return cov + cov.diagonal().mean() * eye + beside.sum() / beside.count_nonzero().clamp(min=1) * (1 - eye)


def fused(old: Tensor, new: Tensor, bias: float) -> Tensor:
    """``U (N * M + O * (1 - M))``: old = U O, new = U N, M the share of the largest change plus ``bias``, at most 1."""
    u, s, v = torch.linalg.svd(old)
    n, o = u.T @ new, s[:, None] * v
    change = (n - o).abs()
    if not float(change.max()):
        return new.clone()  # nothing changed; the released code divides 0 by 0
    share = (change / change.max() + bias).clamp(max=1)
    return u @ (n * share + o * (1 - share))

"""R-AMT: weights of the image tower's attention are switched off, where that does not argue with the model as it came."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench import Adapter, AdapterSet, Backbone, Batch, attach
from cl_bench.heads import columns_of
from cl_bench.ranges import Amount, Count, Positive, Share, Text, Whole

from ._clip import Clip
from ._distil import frozen_copy

__all__ = ["Ramt"]

ATTENTION = r"(.*\.)?(conv1|resblocks\.\d+\.attn(\.out_proj)?|blocks\.\d+\.attn\.(qkv|proj))"


class Masked(Adapter):
    """``W * [m > tau]`` with a real score m for each weight; the gradient passes to m as if it were the mask."""

    paper: ClassVar[str] = "Zheng et al. (R-AMT), ICCV 2023"

    def __init__(self, weight: Tensor, start: Positive = 1e-2, tau: Positive = 5e-3) -> None:
        super().__init__()
        self.start, self.tau = start, tau
        self.score = nn.Parameter(torch.full_like(weight, start))

    @torch.no_grad()
    def reset(self, weight: Tensor) -> None:
        self.score.fill_(self.start)

    def forward(self, weight: Tensor) -> Tensor:
        mask = (self.score > self.tau).to(weight)
        return weight * (mask + (self.score - self.score.detach()))

    @classmethod
    def count(cls, out: int, inp: int, **settings: Any) -> int:
        return out * inp


class Ramt(Clip):
    """Binary masks on attention and patch embedding of the image tower, learned through real scores; texts and weights stay.

    Zheng et al., "Regularized Mask Tuning: Uncovering Hidden Knowledge in Pre-trained Vision-Language Models", ICCV 2023
    (wuw2019/R-AMT): Adam 8e-5, a cosine stepped per epoch, 30 epochs, batches of 32. An entry of the loss's gradient is
    dropped the more likely, the more it opposes the gradient of the divergence from zero-shot CLIP. The loss is
    cross-entropy plus a small weight times each layer's score length. As a continual method the mask is merged when an
    experience ends: what was switched off stays so, and zero-shot CLIP goes on being the model as it came.

    Args:
        dropped: share of an opposing entry that is taken away.
        start, tau: scores at the start, and the level above which a weight is on.
        norm: weight of the scores' length.
        at: anchored pattern of layer names of the image tower.
    """

    paper: ClassVar[str] = "Zheng et al. (R-AMT), ICCV 2023"

    def __init__(self, backbone: Backbone, *, lr: Amount = 8e-5, epochs: Whole = 30, batch_size: Count = 32,
                 iterations: Count = 1000, dropped: Share = 1.0, start: Positive = 1e-2, tau: Positive = 5e-3,
                 norm: Amount = 1e-4, at: Text = ATTENTION) -> None:  # fmt: skip
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size, iterations=iterations)
        self.dropped, self.start, self.tau, self.norm, self.at = dropped, start, tau, norm, at
        self.backbone.requires_grad_(False)
        self.teacher = frozen_copy(self.backbone)
        self.masks: AdapterSet = attach(self.backbone.model, Masked, at, start=start, tau=tau)
        self.opposing: list[Tensor] = []

    def trained(self) -> list[nn.Parameter]:
        """The scores."""
        return list(self.masks.parameters())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        text, scale = self.head.embeddings(self.current), self.backbone.logit_scale
        logits = scale * self.images(batch.x) @ text.T
        with torch.no_grad():
            before = scale * F.normalize(self.teacher.forward_features(batch.x), dim=-1) @ text.T
        keep = F.cross_entropy(logits, before.softmax(1))
        self.opposing = list(torch.autograd.grad(keep, self.trained(), retain_graph=True))
        length = torch.stack([p.norm() for p in self.trained()]).sum()
        return F.cross_entropy(logits, columns_of(batch.y, self.current)) + self.norm * length

    def on_after_backward(self) -> None:
        for p, other in zip(self.trained(), self.opposing, strict=True):
            assert p.grad is not None
            u = torch.rand(p.shape, generator=self.rng.on("cpu")).to(p.device)
            p.grad = agreeing(p.grad, other, u, self.dropped)
        self.opposing = []

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.trained(), lr=self.lr)
        passes = self.epochs_for_steps()
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, passes))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def epochs_for_steps(self) -> int:
        """Passes of the fit at hand."""
        return int(self.trainer.max_epochs or 1)

    def end(self, exp: Any) -> None:
        self.masks.merge_()

    def counters(self) -> dict[str, int | float]:
        """Weights that are off, in percent."""
        zero = total = 0
        for at in self.masks.sites:
            weight = self.masks.weight(at)
            zero, total = zero + int((weight == 0).sum()), total + weight.numel()
        return {"switched_off": 100 * zero / max(1, total)}


def agreeing(gradient: Tensor, other: Tensor, u: Tensor, dropped: float) -> Tensor:
    """Entries of ``gradient`` kept with the probability that ``other`` agrees with them, at draws ``u`` from (0, 1)."""
    agreement = gradient.sign() * (gradient + other) / (gradient.abs() + other.abs() + 1e-8)
    return ((1 - dropped) + dropped * ((agreement + 1) / 2 > u)) * gradient

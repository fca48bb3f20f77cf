"""CoDyRA as published: rank-gated LoRA on both towers of CLIP."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench import Backbone, Batch, Experience
from cl_bench.adapters.codyra import CoDyRA as Gated
from cl_bench.heads import columns_of
from cl_bench.ranges import Amount, Count, Share, Size, Text, Whole

from ._adapted import LINEARS, Adapted, Towers

__all__ = ["CodyraClip"]


class CodyraClip(Adapted):
    """Rank-gated LoRA on all six linears of every block of both towers; gates are closed in the second half of training.

    Lu et al., "Take Only What You Need: Rank Minimization as an Implicit Forgetting Regularizer in Continual Learning",
    arXiv 2412.01004 (Artificer-AI-Lab/CoDyRA), with the settings of its runner. Image-to-text cross-entropy among the
    current classes plus text-to-image cross-entropy with un-normalised multi-hot targets over all prompts seen, those of
    earlier experiences encoded once and without gradient. After each step of the second half the gates are soft-thresholded
    by a level that walks from 0 to ``kappa_max``. Survivors are merged at the end of an experience (released: at the start
    of the next, which gives the same answers); the gates and their walk are those of method ``codyra``.

    Args:
        iterations: optimizer steps per experience.
        rank, kappa_max, dense_fraction: gates per update, the threshold's end, the share of steps without it.
        at: anchored pattern of layer names, matched in each tower.
        towers: ``both`` as published, ``image`` or ``text``.
        released_prox: the authors' three statements, which close everything below twice the threshold.
    """

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
        at: Text = LINEARS,
        towers: Towers = "both",
        released_prox: bool = False,
    ) -> None:
        gates = {"r": rank, "released_prox": released_prox, "kappa_max": kappa_max, "dense_fraction": dense_fraction}
        super().__init__(backbone, "codyra", gates, lr=lr, epochs=epochs, batch_size=batch_size, iterations=iterations,
                         at=at, towers=towers)  # fmt: skip
        self.rank, self.kappa_max, self.dense_fraction = rank, kappa_max, dense_fraction
        self.released_prox = released_prox
        self.old = torch.zeros(0, backbone.num_features)
        self.open_ranks: list[list[int]] = []

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        self.old = self.old_prompts(exp)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        y = columns_of(batch.y, self.current)
        return sum(both_ways(self.images(batch.x), self.old, self.prompts(self.current), y, self.backbone.logit_scale))  # type: ignore[return-value]

    def configure_optimizers(self) -> Any:
        return self.cosine(betas=(0.9, 0.9999))

    def end(self, exp: Experience) -> None:
        gated = [a for s in self.sets() for _, a in s.each() if isinstance(a, Gated)]
        self.open_ranks.append([a.open_ranks for a in gated])
        super().end(exp)

    def counters(self) -> dict[str, int | float]:
        """How many ranks were open, mean over sites, when the last experience ended."""
        last = self.open_ranks[-1] if self.open_ranks else []
        return {"open_ranks": sum(last) / len(last)} if last else {}


def both_ways(images: Tensor, old: Tensor, current: Tensor, y: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor]:
    """Image-to-text and text-to-image loss (models/codyra.py).

    Args:
        images: (N, d) of unit length. old: text features (M, d) of classes seen before, without gradient. current: text
            features (C, d) of the classes at hand. y: columns (N,) among them.
    """
    text = torch.cat([F.normalize(old, dim=-1).to(current), F.normalize(current, dim=-1)])
    logits = scale * images @ text.T
    to_text = F.cross_entropy(logits[:, len(old):], y)
    target = F.one_hot(y + len(old), len(text)).T.to(logits)  # sums of positives, no mean: rows of absent classes count 0
    return to_text, F.cross_entropy(logits.T, target)

"""ZSCL: fine-tuning that keeps the similarities of reference images and texts, and averages weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from cl_bench import Backbone, Batch, Experience
from cl_bench.data.tensor import as_float
from cl_bench.ranges import Amount, Count, Positive, Share, Whole

from ._distil import frozen_copy, reference_pairs, similarity_losses
from .clip_finetune import ClipFinetune

__all__ = ["Zscl"]


class Zscl(ClipFinetune):
    """Cross-entropy, distillation on reference data from the model as it came, weight consolidation, weight averaging.

    Zheng et al., "Preventing Zero-Shot Transfer Degradation in Continual Learning of Vision-Language Models", ICCV 2023
    (Thunderbeee/ZSCL). ``CE + L_image + L_text + l2 * sum (w - w_start)^2``; the distillation terms compare softened
    similarities of reference images to reference texts with the teacher's, by rows and by columns. Every ``average_every``
    steps, the first among them, the running mean of weights takes the current ones in; it is what an experience ends with.

    Deviation: published reference data are ImageNet's images and the captions of Conceptual Captions; name yours with
    ``reference_images`` and ``captions``. Without them embedded images and sentences of the kind that ``glyph_clip`` was
    pretrained on are used, drawn anew.

    Args:
        temperature: of the softened similarities.
        l2: weight of the distance to the experience's start.
        average_every: steps between two averagings; 0 = none.
        references: how many reference images (embedded ones are drawn, of a folder the first are read).
        reference_images: folder of images. captions: text file, a sentence per line.
    """

    paper: ClassVar[str] = "Zheng et al. (ZSCL), ICCV 2023"
    reference: ClassVar[str] = ""
    keeps_start: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-5,
        epochs: Whole = 0,
        batch_size: Count = 64,
        iterations: Count = 1000,
        smoothing: Share = 0.2,
        temperature: Positive = 2.0,
        l2: Amount = 1.0,
        average_every: Whole = 100,
        references: Count = 1024,
        reference_images: str = "",
        captions: str = "",
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size, iterations=iterations, smoothing=smoothing)
        self.temperature, self.l2, self.average_every = temperature, l2, average_every
        self.references, self.reference_images, self.captions = references, reference_images, captions
        self.teacher = frozen_copy(self.backbone)
        self.mean: list[Tensor] = []
        self.merged = 0
        self.shown, self.texts = torch.zeros(0), torch.zeros(0)

    @torch.no_grad()
    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        self.mean, self.merged = [p.clone() for p in self.start] if self.average_every else [], 0
        if not len(self.shown):
            data, texts = reference_pairs(self.references, self.reference_images, self.captions, self.rng.on("cpu"))
            self.shown = data.x.to(self.device)
            tokens = self.teacher.tokenize(texts)
            self.texts = torch.cat([self.teacher.encode_tokens(t) for t in tokens.split(256)])

    def reference_loss(self) -> Tensor:
        """Both distillation terms on a batch of reference images."""
        rows = torch.randint(len(self.shown), (self.batch_size,), generator=self.rng.on("cpu")).to(self.shown.device)
        x = as_float(self.shown[rows])
        with torch.no_grad():
            before = self.teacher.forward_features(x)
        now = self.backbone.forward_features(x)
        return sum(similarity_losses(now, before, self.texts, self.backbone.logit_scale, self.temperature))  # type: ignore[return-value]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx) + self.reference_loss()
        return loss + self.l2 * distance(self.trained(), self.start) if self.l2 else loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.average_every and self.done % self.average_every == 0:
            self._take_in()
        super().on_train_batch_end(outputs, batch, batch_idx)

    def _take_in(self) -> None:
        self.merged += 1
        take_in(self.mean, self.trained(), self.merged)

    @torch.no_grad()
    def end(self, exp: Experience) -> None:
        if self.average_every:
            if self.done and self.done % self.average_every == 0:
                self._take_in()  # the released loop ends with a step at rate 0, and averages after it
            for p, value in zip(self.trained(), self.mean, strict=True):
                p.copy_(value)
        self.mean = []
        super().end(exp)


def distance(weights: Sequence[Tensor], start: Sequence[Tensor]) -> Tensor:
    """Sum of squared differences."""
    return torch.stack([(p - s.to(p)).square().sum() for p, s in zip(weights, start, strict=True)]).sum()


@torch.no_grad()
def take_in(mean: Sequence[Tensor], weights: Sequence[Tensor], count: int) -> None:
    """The running mean's ``count``-th merge (from 1), in place: the start counts as one, so the first gives the half."""
    for m, p in zip(mean, weights, strict=True):
        m.mul_(count / (count + 1)).add_(p.to(m), alpha=1 / (count + 1))

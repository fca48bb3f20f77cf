"""LwF-VR: distillation from the previous model on the images at hand, against random sentences."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from cl_bench import Backbone, Batch, Experience
from cl_bench.data.tensor import as_float
from cl_bench.ranges import Amount, Count, Positive, Share, Size, Whole

from ._distil import frozen_copy, similarity_losses
from .clip_finetune import ClipFinetune

__all__ = ["LwfVr"]


class LwfVr(ClipFinetune):
    """Fine-tuning with feature distillation from the previous model; a "replayed vocabulary" of random tokens is the text.

    Ding et al., "Don't Stop Learning: Towards Continual Learning for the CLIP Model", 2022, as Thunderbeee/ZSCL runs it
    (mtil/scripts/lwf_vr.sh): reference images are the experience's own in another order, reference texts 1,000 sequences of
    start, 10 random ids of the whole vocabulary, and end, drawn once per experience; weights 1, no averaging, no distance.

    Args:
        texts: ``random`` sentences, or ``classes``: the current classes' prompts (LwF in the tables of ZSCL).
        sentences, length: how many random sentences, and ids in each.
        temperature: of the softened similarities.
    """

    paper: ClassVar[str] = "Ding et al., 2022; Li & Hoiem (LwF), ECCV 2016"
    reference: ClassVar[str] = ""

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-5,
        epochs: Whole = 0,
        batch_size: Count = 64,
        iterations: Count = 1000,
        smoothing: Share = 0.2,
        texts: Literal["random", "classes"] = "random",
        sentences: Count = 1000,
        length: Size = 10,
        temperature: Positive = 2.0,
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size, iterations=iterations, smoothing=smoothing)
        self.texts, self.sentences, self.length, self.temperature = texts, sentences, length, temperature
        self.shown = self.before = self.vocabulary = torch.zeros(0)

    @torch.no_grad()
    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        teacher = frozen_copy(self.backbone)
        if self.texts == "classes":
            tokens = teacher.tokenize([(exp.space.templates or self.head.templates)[0].format(n) for n in exp.space.names])
        else:
            tokens = random_sentences(teacher.vocabulary, self.sentences, self.length, teacher.context_length,
                                      self.rng.on("cpu")).to(self.device)  # fmt: skip
        self.vocabulary = torch.cat([teacher.encode_tokens(t) for t in tokens.split(256)])
        self.shown = torch.stack([torch.as_tensor(exp.data[i][0]) for i in range(len(exp.data))]).to(self.device)  # type: ignore[arg-type]
        self.before = torch.cat([teacher.forward_features(as_float(x)) for x in self.shown.split(256)])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        rows = torch.randint(len(self.shown), (self.batch_size,), generator=self.rng.on("cpu")).to(self.shown.device)
        now = self.backbone.forward_features(as_float(self.shown[rows]))
        kept = similarity_losses(now, self.before[rows], self.vocabulary, self.backbone.logit_scale, self.temperature)
        return loss + kept[0] + kept[1]

    def end(self, exp: Experience) -> None:
        self.shown = self.before = self.vocabulary = torch.zeros(0)
        super().end(exp)


def random_sentences(tokenizer: object, count: int, length: int, context: int, rng: torch.Generator) -> Tensor:
    """Tokens (count, context): start, ``length`` ids of the whole vocabulary, end, and zeros."""
    start, end, size = (int(getattr(tokenizer, k)) for k in ("sot_token_id", "eot_token_id", "vocab_size"))
    tokens = torch.zeros(count, context, dtype=torch.int64)
    tokens[:, 0], tokens[:, 1 : length + 1] = start, torch.randint(size, (count, length), generator=rng)
    tokens[:, length + 1] = end
    return tokens

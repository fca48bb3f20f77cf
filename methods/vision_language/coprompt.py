"""CoPrompt: prompts in both towers that stay near the model as it came on other views and other sentences."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench import Backbone, Batch, Experience, LabelSpace
from cl_bench.ranges import Amount, Count, Share, Size, Text, Whole

from ._clip import contrast
from ._phrases import phrases_of, read_phrases
from ._views import cropped
from .maple import Maple

__all__ = ["Coprompt"]

SENTENCES = ("a photo of a {}.", "a picture of a {}.", "an image of a {}.", "a {}.")  # where no file has others


class Coprompt(Maple):
    """MaPLe's prompts, a small adapter on either feature, and a pull towards the features that the model gives as it came.

    Roy and Etemad, "Consistency-guided Prompt Learning for Vision-Language Models", ICLR 2024 (ShuvenduRoy/CoPrompt):
    cross-entropy plus ``pull`` times one minus the cosine, of the learner's image features to the plain ones of another
    view, and of its class texts to the plain ones of another sentence about the class, one drawn for each step. SGD 0.0035,
    8 epochs of batches of 4, the first at 1e-5. Adapters are ``m ReLU(U ReLU(D f)) + (1 - m) f``.

    Deviations: views are random resized crops of at least ``area``, not RandAugment's. Sentences are those of ``phrases``
    (the paper's were written by GPT-3), else a few templates.

    Args:
        pull: weight of the consistency.
        image_ratio, text_ratio: m of the two adapters.
        reduction: width of a feature over that of an adapter's bottleneck.
        phrases: JSON file, a list of sentences for each class name; "" = templates.
        area: smallest share of the image in a view.
        flip: mirror half of the views.
    """

    paper: ClassVar[str] = "Roy & Etemad (CoPrompt), ICLR 2024"

    def __init__(self, backbone: Backbone, *, lr: Amount = 3.5e-3, epochs: Whole = 8, batch_size: Count = 4,
                 iterations: Count = 1000, words: Size = 2, depth: Size = 9, start: Text = "a photo of a", pull: Amount = 1.0,
                 image_ratio: Share = 0.1, text_ratio: Share = 0.2, reduction: Size = 4, phrases: str = "",
                 area: Share = 0.5, flip: bool = False) -> None:  # fmt: skip
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size, iterations=iterations, words=words,
                         depth=depth, start=start)  # fmt: skip
        self.pull, self.image_ratio, self.text_ratio, self.reduction = pull, image_ratio, text_ratio, reduction
        self.phrases, self.area, self.flip = phrases, area, flip
        self.told = read_phrases(phrases) if phrases else {}
        width = backbone.num_features
        inner = max(1, width // reduction)
        self.on_image, self.on_text = (nn.Sequential(
            nn.Linear(width, inner, bias=False), nn.ReLU(), nn.Linear(inner, width, bias=False), nn.ReLU(),
        ) for _ in range(2))  # fmt: skip
        self.plain: list[Tensor] = []

    def trained(self) -> list[nn.Parameter]:
        return [*super().trained(), *self.on_image.parameters(), *self.on_text.parameters()]

    def text_features(self, space: LabelSpace) -> Tensor:
        return blended(self.on_text, super().text_features(space), self.text_ratio)

    def image_features(self, x: Tensor) -> Tensor:
        return blended(self.on_image, super().image_features(x), self.image_ratio)

    @torch.no_grad()
    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        names = exp.space.names
        if self.told:
            each = phrases_of(self.told, names, self.phrases)
            rounds = [[told[k % len(told)] for told in each] for k in range(max(map(len, each)))]
        else:
            sentences = dict.fromkeys([*exp.space.templates, *SENTENCES])
            rounds = [[t.format(n.replace("_", " ")) for n in names] for t in sentences]
        self.plain = [self.backbone.encode_tokens(self.backbone.tokenize(r)) for r in rounds]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        one, two = (cropped(batch.x, self.rng, self.area, self.flip) for _ in range(2))
        image, text = self.image_features(one), self.text_features(self.current)
        with torch.no_grad():
            other = self.backbone.forward_features(two)
        told = self.plain[int(torch.randint(len(self.plain), (), generator=self.rng.on("cpu")))]
        scale = self.backbone.logit_scale
        loss = contrast(F.normalize(image, dim=-1), F.normalize(text, dim=-1), batch.y, self.current, scale)
        return loss + self.pull * (apart(text, told.to(text)) + apart(image, other))

    def end(self, exp: Any) -> None:
        self.plain = []


def blended(adapter: nn.Module, f: Tensor, ratio: float) -> Tensor:
    """``ratio`` of what the adapter makes of a feature, the rest the feature."""
    return ratio * adapter(f) + (1 - ratio) * f


def apart(a: Tensor, b: Tensor) -> Tensor:
    """One minus the mean cosine of rows."""
    return 1 - F.cosine_similarity(a, b, dim=1, eps=1e-7).mean()

"""CoOp: learned context words, as a continual method."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from cl_bench import Backbone, Batch, Experience, LabelSpace
from cl_bench.ranges import Amount, Count, Size, Whole

from ._clip import Clip, contrast, scaled_cosines
from ._prompt import coop_rates, prompt_tokens, prompted, start_context

__all__ = ["Coop"]


class Coop(Clip):
    """One context shared by all classes, trained through the frozen text tower; experience after experience.

    Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022 (KaiyangZhou/CoOp): SGD 0.002 with momentum 0.9
    and weight decay 5e-4, one epoch at 1e-5 and then a cosine, 50 epochs, batches of 32; class name at the end, a full stop
    after it. As a continual method the context goes on from experience to experience. Image features are computed once.

    Args:
        words: learned words, drawn from N(0, 0.02^2) where ``start`` is "".
        start: words that the context starts from instead, such as "a photo of a"; ``words`` is then their number.
    """

    paper: ClassVar[str] = "Zhou et al. (CoOp), IJCV 2022"

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 2e-3,
        epochs: Whole = 50,
        batch_size: Count = 32,
        iterations: Count = 1000,
        words: Size = 16,
        start: str = "",
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size, iterations=iterations)
        self.words, self.start = words, start
        self.backbone.requires_grad_(False)
        first = start_context(self.backbone, start or "a")
        fresh = first if start else torch.empty(words, first.shape[1]).normal_(std=0.02).to(first)
        self.context = nn.Parameter(fresh)
        self.learned = False

    def training_data(self, exp: Experience) -> Dataset:
        return exp.data if exp.augment is not None else self.features_once(exp)

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        self.learned = True

    def text(self, space: LabelSpace) -> Tensor:
        """Unit text features (C, d) with the context as it is."""
        return prompted(self.backbone, prompt_tokens(self.backbone, len(self.context), space.names), self.context)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        with torch.no_grad():
            images = self.images(batch.x)
        return contrast(images, self.text(self.current), batch.y, self.current, self.backbone.logit_scale)

    def configure_optimizers(self) -> Any:
        return coop_rates([self.context], self.lr, self.total, self.epochs)

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        if not (self.learned or self.start):  # a drawn context says nothing before it was trained
            return super().predict(x, space)
        f = F.normalize(self.backbone.forward_features(x), dim=-1)
        return scaled_cosines(f, self.text(space), self.backbone.logit_scale)

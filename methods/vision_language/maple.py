"""MaPLe: learned vectors in the sequences of both towers, those of images made from those of texts."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench import Backbone, Batch, LabelSpace
from cl_bench.ranges import Amount, Count, Size, Text, Whole

from ._clip import Clip, contrast, scaled_cosines
from ._prompt import prompt_tokens, replaced, start_context

__all__ = ["Maple"]


class Maple(Clip):
    """Some words of the prompt are learned, and fresh vectors in their place before each of the first blocks; a linear map
    of each gives the image tower's, behind its patches.

    Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023 (muzairkhattak/multimodal-prompt-learning): 2 vectors,
    depth 9, SGD 0.0035 with momentum 0.9 and decay 5e-4, the first epoch at 1e-5 and then a cosine, 5 epochs, batches of 4.
    As released, the learned vectors take the place of the first words of ``start``, whose other words stay. As a
    continual method the prompts go on from experience to experience; before the first, the model answers as it came.

    Args:
        words: learned vectors.
        depth: blocks with vectors of their own, the first included; towers with fewer blocks have as many as they have.
        start: what the prompt begins with.
    """

    paper: ClassVar[str] = "Khattak et al. (MaPLe), CVPR 2023"

    def __init__(self, backbone: Backbone, *, lr: Amount = 3.5e-3, epochs: Whole = 5, batch_size: Count = 4,
                 iterations: Count = 1000, words: Size = 2, depth: Size = 9, start: Text = "a photo of a") -> None:  # fmt: skip
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size, iterations=iterations)
        self.words, self.depth, self.start = words, depth, start
        self.backbone.requires_grad_(False)
        blocks = max(self.backbone.depths)
        first = start_context(self.backbone, start)[:words]
        width = self.backbone.model.conv1.out_channels  # of the image tower
        fresh = torch.empty(max(0, words - len(first)), first.shape[1]).normal_(std=0.02).to(first)
        self.context = nn.Parameter(torch.cat([first, fresh]))
        self.deeper = nn.ParameterList(
            torch.empty(words, first.shape[1]).normal_(std=0.02) for _ in range(min(depth, blocks) - 1))  # fmt: skip
        self.maps = nn.ModuleList(nn.Linear(first.shape[1], width) for _ in range(min(depth, blocks)))  # type: ignore[arg-type]
        self.replaces = len(first) == words  # the other words of the prompt stay
        self.learned = False

    def begin(self, exp: Any) -> None:
        super().begin(exp)
        self.learned = True

    def trained(self) -> list[nn.Parameter]:
        """Prompts and their maps."""
        return [self.context, *self.deeper, *self.maps.parameters()]

    def text_features(self, space: LabelSpace) -> Tensor:
        """Features (C, d) of the prompts, not normalised."""
        if self.replaces:
            tokens = self.backbone.tokenize([f"{self.start} {n.replace('_', ' ')}." for n in space.names])
        else:
            tokens = prompt_tokens(self.backbone, len(self.context), space.names)
        return self.backbone.encode_tokens(tokens, replaced(self.backbone, tokens, self.context), list(self.deeper))

    def image_features(self, x: Tensor) -> Tensor:
        """Features (N, d) of images among the prompts, not normalised."""
        first, *deeper = (m(p) for m, p in zip(self.maps, (self.context, *self.deeper), strict=True))
        return self.backbone.prompted_features(x, first, deeper)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        image, text = F.normalize(self.image_features(batch.x), dim=-1), F.normalize(self.text_features(self.current), dim=-1)
        return contrast(image, text, batch.y, self.current, self.backbone.logit_scale)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.trained(), lr=self.lr, momentum=0.9, weight_decay=5e-4)
        passes = int(self.trainer.max_epochs or 1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, Slow(passes, 1e-5 / self.lr if self.lr else 1.0))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        if not self.learned:
            return super().predict(x, space)
        image, text = F.normalize(self.image_features(x), dim=-1), F.normalize(self.text_features(space), dim=-1)
        return scaled_cosines(image, text, self.backbone.logit_scale)


class Slow:
    """Factors of a learning rate by epoch: the first at ``factor``, then a cosine from 1 that would reach 0 after as many
    epochs as there are in all, as Dassl's warm-up does; a single epoch has the whole rate."""

    def __init__(self, epochs: int, factor: float) -> None:
        self.epochs, self.factor = epochs, factor

    def __call__(self, epoch: int) -> float:
        if epoch == 0 and self.epochs > 1:
            return self.factor
        return 0.5 * (1 + math.cos(math.pi * max(0, epoch - 1) / max(1, self.epochs)))

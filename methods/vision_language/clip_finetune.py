"""Sequential fine-tuning of both towers: what every continual method for CLIP is measured against."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from cl_bench import Backbone, Batch, Experience
from cl_bench.ranges import Amount, Count, Share, Whole

from ._clip import Clip, contrast

__all__ = ["ClipFinetune"]


class ClipFinetune(Clip):
    """Trains both towers on the experience at hand by image-to-text cross-entropy among its own classes.

    Zheng et al., ICCV 2023 (Thunderbeee/ZSCL), "continual fine-tuning" of MTIL: all parameters but the logit scale, AdamW
    without decay, warm-up of 100 steps and cosine, label smoothing 0.2, the first template; class texts are encoded anew at
    each step. Their data are cropped at random (scale 0.9 to 1) by the scenario, if at all.

    Args:
        lr: 1e-5 as published (5e-5 on Aircraft and MNIST).
        smoothing: of the labels.
    """

    paper: ClassVar[str] = "lower bound of MTIL: Zheng et al., ICCV 2023"
    reference: ClassVar[str] = "lower bound"

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-5,
        epochs: Whole = 0,
        batch_size: Count = 64,
        iterations: Count = 1000,
        smoothing: Share = 0.2,
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size, iterations=iterations)
        self.smoothing = smoothing
        self.backbone.requires_grad_(True)
        for name, p in self.backbone.language.named_parameters():
            p.requires_grad_(not name.startswith("logit_"))

    def trained(self) -> list[nn.Parameter]:
        """Both towers, without the scale."""
        return [p for p in self.backbone.parameters() if p.requires_grad]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        text = self.prompts(self.current)
        return contrast(self.images(batch.x), text, batch.y, self.current, self.backbone.logit_scale, self.smoothing)

    def configure_optimizers(self) -> Any:
        return self.warm_cosine(self.trained())

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        self.start = [p.detach().clone() for p in self.trained()] if self.keeps_start else []

    keeps_start: ClassVar[bool] = False  # whether weights of the experience's start are needed while it is learned

    def end(self, exp: Experience) -> None:
        self.start = []
        self.head.refresh()

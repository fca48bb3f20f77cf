"""Sequential LoRA on both towers of CLIP."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from cl_bench import Backbone, Batch
from cl_bench.ranges import Amount, Count, Share, Size, Text, Whole

from ._adapted import LINEARS, Adapted, Towers
from ._clip import contrast

__all__ = ["ClipLora"]


class ClipLora(Adapted):
    """LoRA on every linear of both towers, experience after experience, merged in between; nothing against forgetting.

    Hu et al., ICLR 2022; as CoDyRA's tables run it on X-TAIL (rank 16, 500 steps of 64, AdamW 5e-4 with a cosine). The
    update is ``B A`` without a scale; q, k and v have an update each.

    Args:
        rank: of the updates.
        at: anchored pattern of layer names, matched in each tower.
        towers: ``both``, ``image`` or ``text``.
        smoothing: of the labels.
    """

    paper: ClassVar[str] = "Hu et al., ICLR 2022; baseline of Lu et al. (CoDyRA), arXiv 2412.01004"

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 5e-4,
        epochs: Whole = 0,
        batch_size: Count = 64,
        iterations: Count = 500,
        rank: Size = 16,
        at: Text = LINEARS,
        towers: Towers = "both",
        smoothing: Share = 0.0,
    ) -> None:
        super().__init__(backbone, "lora", {"r": rank}, lr=lr, epochs=epochs, batch_size=batch_size, iterations=iterations,
                         at=at, towers=towers)  # fmt: skip
        self.rank, self.smoothing = rank, smoothing

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        text = self.prompts(self.current)
        return contrast(self.images(batch.x), text, batch.y, self.current, self.backbone.logit_scale, self.smoothing)

    def configure_optimizers(self) -> Any:
        return self.cosine()

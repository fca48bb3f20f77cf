"""Sequential fine-tuning: the lower bound that every continual method must beat."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from cl_bench import Backbone, Batch, Method
from cl_bench.ranges import Amount, Count, Whole

from ._decay import adamw

__all__ = ["Finetune"]


class Finetune(Method):
    """Trains everything on the current experience alone, with nothing against forgetting.

    The literature reports three variants that differ by up to 60 points; each is a setting here: cross-entropy over
    all classes seen (the default), cross-entropy among the experience's own classes (``masked=True``: LAMDA-PILOT's
    "finetune"), and the latter with a slow backbone (``masked=True, backbone_lr=1e-5``: SLCA's strong baseline).

    AdamW (betas 0.9 and 0.999, decay 0.01) at a constant rate; masked, the head has no decay, which would shrink the rows
    that the loss does not reach.

    Args:
        lr: AdamW's learning rate.
        masked: cross-entropy among the current experience's classes only.
        backbone_lr: learning rate of the backbone; None = ``lr``, 0 = it stays.
    """

    family: ClassVar[str] = "baseline"
    reference: ClassVar[str] = "lower bound"
    paper: ClassVar[str] = "lower bound; variants as in Zhang et al. (SLCA), ICCV 2023"
    shares_batches: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-3,
        epochs: Whole = 5,
        batch_size: Count = 32,
        masked: bool = False,
        backbone_lr: Amount | None = None,
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.masked, self.backbone_lr = masked, backbone_lr

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.loss(self(batch.x), batch.y, self.current if self.masked else None)

    def configure_optimizers(self) -> Any:
        return adamw(self, backbone_lr=self.backbone_lr, masked=self.masked)

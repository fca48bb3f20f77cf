"""C-TPT: test-time prompt tuning that keeps class texts apart."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from cl_bench import Backbone
from cl_bench.ranges import Amount, Count, Share, Size, Text

from .tpt import Tpt

__all__ = ["CTpt"]


class CTpt(Tpt):
    """TPT whose step also raises the mean distance of class texts to their mean, which lowers the calibration error.

    Yoon et al., "C-TPT: Calibrated Test-Time Prompt Tuning for Vision-Language Models via Text Feature Dispersion", ICLR
    2024 (hee-suk-yoon/C-TPT). With one AdamW step only the signs of the summed gradient matter.

    Args:
        steps: of the optimizer, for each image.
        dispersion: weight of the dispersion; 50 on fine-grained sets, 20 on ImageNet's shifted sets; 0 is ``tpt``.
    """

    family: ClassVar[str] = "test-time"
    paper: ClassVar[str] = "Yoon et al. (C-TPT), ICLR 2024"

    def __init__(self, backbone: Backbone, *, lr: Amount = 5e-3, views: Size = 64, steps: Count = 1, share: Share = 0.1,
                 context: Text = "a photo of a", dispersion: Amount = 50.0, area: Share = 0.08,
                 flip: bool = True, augmix: bool = False) -> None:  # fmt: skip
        super().__init__(backbone, lr=lr, views=views, steps=steps, share=share, context=context, area=area, flip=flip,
                         augmix=augmix)  # fmt: skip
        self.dispersion = dispersion

    def objective(self, logits: Tensor, text: Tensor) -> Tensor:
        loss = super().objective(logits, text)
        return loss - self.dispersion * dispersion(text) if self.dispersion else loss


def dispersion(text: Tensor) -> Tensor:
    """Mean distance of texts (C, d) to their mean, which is not of unit length."""
    return (text - text.mean(0)).norm(dim=1).mean()

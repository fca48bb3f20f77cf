"""SoMA (Yun et al., CVPR 2025, arXiv 2412.04077, github.com/ysj9909/SoMA): train the minor singular directions."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ._factored import Factored

__all__ = ["SoMA"]


class SoMA(Factored):
    """LoRA that starts at the last r singular triplets, which the pretrained weight uses least.

    The paper also leaves the first third of the blocks alone (say so in ``at``) and anneals weight decay. The released code
    (rein/peft/sora.py, ``bias="all"``) trains the biases of the targeted layers as well; here an adapter is a function of the
    weight, and biases stay frozen. Its configuration class defaults to ``sora_niter_4``, a randomised decomposition that
    returns the largest triplets (PiSSA's start); the released configurations say ``sora``, which is this.
    """

    paper: ClassVar[str] = "Yun et al., SoMA, CVPR 2025"

    def start(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        root = s[-self.r :].sqrt()
        return root.unsqueeze(1) * v[-self.r :], u[:, -self.r :] * root

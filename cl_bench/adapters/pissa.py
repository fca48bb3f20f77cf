"""PiSSA (Meng et al., NeurIPS 2024, arXiv 2404.02948): train the principal singular directions of the weight."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ._factored import Factored

__all__ = ["PiSSA"]


class PiSSA(Factored):
    """LoRA that starts at the top r singular triplets, ``B0 = U_r sqrt(S_r)``, ``A0 = sqrt(S_r) V_r``.

    Learns fast and forgets fast: it moves what the pretrained weight uses most.
    """

    paper: ClassVar[str] = "Meng et al., PiSSA, NeurIPS 2024"

    def start(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        root = s[: self.r].sqrt()
        return root.unsqueeze(1) * v[: self.r], u[:, : self.r] * root

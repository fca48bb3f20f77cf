"""CorDA (Yang et al., NeurIPS 2024, arXiv 2406.05223, github.com/iboing/CorDA): singular directions that data chose."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..ranges import Amount, Size
from ._factored import Factored

__all__ = ["CorDA"]


class CorDA(Factored):
    """LoRA that starts at triplets of ``W C``, C the covariance of the site's inputs: ``W = U S (V C^-1)``.

    ``kpm`` (knowledge preserved) trains the smallest triplets of inputs that must keep their answers; ``ipm``
    (instruction previewed) the largest of inputs to be learned. C is damped by ``damp * mean(diag C)``, doubled until
    ``|C C^-1 - I| < 0.05``. All in float64.
    """

    paper: ClassVar[str] = "Yang et al., CorDA, NeurIPS 2024"
    needs_gram: ClassVar[bool] = True
    gram: Tensor

    def __init__(
        self,
        weight: Tensor,
        gram: Tensor | None = None,
        r: Size = 16,
        alpha: Amount | None = None,
        mode: Literal["kpm", "ipm"] = "kpm",
        damp: Amount = 0.01,
    ) -> None:
        if mode not in ("kpm", "ipm"):
            raise ValueError(f"mode {mode!r} is neither kpm nor ipm")
        self.mode, self.damp = mode, damp
        self.start_gram = torch.eye(weight.shape[1]) if gram is None else gram
        super().__init__(weight, r, alpha)

    def start(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        gram = self.start_gram.to(weight)
        eye = torch.eye(len(gram), dtype=weight.dtype, device=weight.device)
        damp, unit = self.damp, gram.diagonal().mean().clamp(min=1e-12)
        while True:
            c = gram + damp * unit * eye
            inverse = torch.linalg.inv(c)
            if torch.linalg.norm(c @ inverse - eye) < 0.05:
                break
            damp *= 2
        u, s, v = torch.linalg.svd(weight @ c, full_matrices=False)
        at = slice(len(s) - self.r, None) if self.mode == "kpm" else slice(0, self.r)
        root = s[at].sqrt()
        return root.unsqueeze(1) * (v[at] @ inverse), u[:, at] * root

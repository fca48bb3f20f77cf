"""KORE (arXiv 2510.19316): train only what acts on the null space of old inputs."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..ranges import Size
from ._factored import Factored

__all__ = ["KORE"]


class KORE(Factored):
    """LoRA whose frozen A lies in the span of the inputs' weakest directions, so that moving B spares old outputs.

    With ``P`` the projector on the r eigenvectors of the input covariance with the smallest eigenvalues, ``project``
    starts from the singular triplets of ``W P`` (the paper); ``nullspace`` from A = those eigenvectors and B = 0. A is
    frozen. ``tail`` is the share of the inputs' energy that is left in the directions trained: protection is only as
    good as that. The rank is fixed; the paper's image-text data augmentation is not part of this.
    """

    paper: ClassVar[str] = "KORE, arXiv 2510.19316"
    needs_gram: ClassVar[bool] = True

    def __init__(
        self,
        weight: Tensor,
        gram: Tensor | None = None,
        r: Size = 16,
        init: Literal["project", "nullspace"] = "project",
    ) -> None:
        if init not in ("project", "nullspace"):
            raise ValueError(f"init {init!r} is neither project nor nullspace")
        self.init, self.tail = init, 0.0
        self.start_gram = torch.eye(weight.shape[1]) if gram is None else gram
        super().__init__(weight, r)
        self.A.requires_grad_(False)

    def start(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.start_gram.to(weight))
        self.tail = float(values[: self.r].clamp(min=0).sum() / values.clamp(min=0).sum().clamp(min=1e-30))
        weak = vectors[:, : self.r]
        if self.init == "nullspace":
            return weak.T, weight.new_zeros(len(weight), self.r)
        u, s, v = torch.linalg.svd(weight @ weak, full_matrices=False)
        root = s.sqrt()
        return root.unsqueeze(1) * (v @ weak.T), u * root

    @classmethod
    def count(cls, out: int, inp: int, r: int = 16, **settings: Any) -> int:
        return min(r, out, inp) * out

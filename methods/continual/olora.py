"""O-LoRA (Wang et al., Findings of EMNLP 2023, arXiv 2310.14152, github.com/cmnfriend/O-LoRA): one LoRA per task, its
rows kept orthogonal to those of all earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from cl_bench import Backbone, Batch, Experience, attach
from cl_bench.ranges import Amount, Count, Size, Text, Whole

from .._differs import Differs
from ._frozen_trunk import FrozenTrunk

__all__ = ["OLoRA"]


class OLoRA(FrozenTrunk):
    """Adds a LoRA per experience and pays ``lamda * sum |A_i A_t^T|`` for overlap with the frozen earlier ones.

    The penalty is entry-wise absolute, as in the authors' code (the paper writes a squared Frobenius norm).

    Deviations: published for language models with q and v of T5, rank 8, alpha 32 and task names in the prompt. The
    vision setting: rank 10 on q and v, alpha = r, a growing linear head with cross-entropy among the current classes,
    five epochs (published: one) of Adam at a constant 1e-3, and no dropout.

    Args:
        lamda: weight of the overlap (published: 0.5).
        lamda2: weight of the sum of the new factors' Frobenius norms, not squared (released runs: 0 to 0.5).
        at: anchored pattern of fused qkv layers.
    """

    family: ClassVar[str] = "subspace"
    paper: ClassVar[str] = "Wang et al., O-LoRA, EMNLP Findings 2023"
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("The overlap is a sum of absolute entries; the paper writes a squared Frobenius norm.",
                "cmnfriend/O-LoRA@07117e1f src/uie_trainer_lora.py:96"),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-3,
        epochs: Whole = 5,
        batch_size: Count = 64,
        r: Size = 10,
        alpha: Amount | None = None,
        lamda: Amount = 0.5,
        lamda2: Amount = 0.0,
        at: Text = r"(.*\.)?blocks\.\d+\.attn\.qkv",
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.r, self.alpha, self.lamda, self.lamda2, self.at = r, alpha, lamda, lamda2, at
        self.adapters = attach(backbone, "lora", at, rows=("q", "v"), r=r, alpha=alpha)
        self.learned = 0

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        if self.learned:
            self.adapters.add(f"task{self.learned}")
        self.adapters.use(*self.adapters.names)
        self.adapters.train_only(self.adapters.names[-1])

    def overlap(self) -> Tensor:
        """The sum over sites and earlier tasks of ``|A_i A_t^T|``, entry-wise; 0 where all rows are orthogonal."""
        *earlier, now = ([a for _, a in self.adapters.each(name)] for name in self.adapters.names)
        total = now[0].aux_loss()
        for task in earlier:
            total = total + overlap([a.A for a in task], [a.A for a in now])  # type: ignore[misc]
        return total

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(self(batch.x), batch.y, among=self.current) + self.lamda * self.overlap()
        if self.lamda2:
            now = [a for _, a in self.adapters.each(self.adapters.names[-1])]
            loss = loss + self.lamda2 * length([p for a in now for p in (a.A, a.B)])  # type: ignore[misc]
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.trained(), lr=self.lr)

    def end(self, exp: Experience) -> None:
        self.learned += 1


def overlap(old: Sequence[Tensor], new: Sequence[Tensor]) -> Tensor:
    """sum over sites of ``|A_old A_new^T|``, entry-wise; A (R, d) of earlier tasks and (r, d) of the new one."""
    return torch.stack([(a @ b.T).abs().sum() for a, b in zip(old, new, strict=True)]).sum()


def length(factors: Sequence[Tensor]) -> Tensor:
    """The sum of the Frobenius norms."""
    return torch.stack([f.norm() for f in factors]).sum()

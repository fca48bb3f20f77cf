"""Sequential training of any adapter kind (He et al., "Towards a Unified View of Parameter-Efficient Transfer Learning", ICLR
2022): one frozen trunk, one adapter of a named kind, one experience after another."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from cl_bench import Backbone, Batch, Experience, LabelSpace, attach
from cl_bench.adapters import FUSED4, input_grams
from cl_bench.ranges import Amount, Count, Share, Text, Whole
from cl_bench.registry import find

from ._frozen_trunk import FrozenTrunk, cosine

__all__ = ["AdapterTuning"]

_PLACES = {"prefix": r"(.*\.)?blocks\.\d+\.attn"}


class AdapterTuning(FrozenTrunk):
    """Trains an adapter of any registered kind, and a growing head, with nothing else against forgetting.

    A kind that is a change of weights is merged after every experience and starts again from there (its own start: PiSSA's
    and SoMA's triplets, OSFT's split, KORE's and CorDA's from the inputs of the experience to come); any other goes on from
    where it was. Its regulariser joins the loss, its projections and schedules run where they belong. AdamW (betas 0.9 and
    0.999) at a cosine stepped per step.

    Args:
        kind: a registered kind (``cl-bench list adapters``), or ``module:Class``.
        at: anchored pattern of layer names; empty: the four linears of timm's blocks for kinds on weights, attention for
            ``prefix``, whole blocks for the others.
        rows: parts of a fused qkv projection that get an adapter each, for kinds on weights; none: the whole.
        settings: the kind's own, e.g. ``{r: 4}``.
        head_lr: rate of the head; None = ``lr``.
        masked: cross-entropy among the current classes only; False takes all classes seen.
    """

    name: ClassVar[str] = "adapter"
    family: ClassVar[str] = "adapter"
    paper: ClassVar[str] = "He et al., ICLR 2022"

    def __init__(
        self, backbone: Backbone, *, lr: Amount = 1e-3, epochs: Whole = 5, batch_size: Count = 64, kind: Text = "lora",
        at: str = "", rows: tuple[str, ...] = (), settings: dict[str, Any] | None = None, head_lr: Amount | None = None,
        weight_decay: Share = 0.0, masked: bool = True,
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.kind, self.at, self.rows, self.settings = kind, at, rows, settings
        self.head_lr, self.weight_decay, self.masked, self.step = head_lr, weight_decay, masked, 0
        cls = find("cl_bench.adapters", kind)
        weights = cls.level == "weight"
        self.where = at or (FUSED4 if weights else _PLACES.get(kind, r"(.*\.)?blocks\.\d+"))
        how = dict(settings or {}, **({"rows": rows} if rows and weights else {}))
        self.adapters = attach(backbone, cls, self.where, grams={} if cls.needs_gram else None, **how)

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        self.step = 0
        if self.adapters.kind.needs_gram:  # a start of its own from what flows in now
            with torch.no_grad(), self.adapters.off():
                self.adapters.grams = input_grams(self.backbone, self.where, (b.x for b in self.plain(exp)))
            self.adapters.drop("default")
            self.adapters.add("default")
            self.adapters.use("default")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        among: LabelSpace | None = self.current if self.masked else None
        return self.loss(self(batch.x), batch.y, among) + self.adapters.aux_loss().to(batch.x)

    def configure_optimizers(self) -> Any:
        groups = [g for g in self.rates(self.head_lr) if g["params"]]
        return cosine(torch.optim.AdamW(groups, lr=self.lr, weight_decay=self.weight_decay), self.total_steps)

    def on_after_backward(self) -> None:
        self.adapters.after_backward()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.step += 1
        self.adapters.after_step(self.step, self.total_steps)

    def end(self, exp: Experience) -> None:
        if self.adapters.kind.mergeable:
            self.adapters.merge_()

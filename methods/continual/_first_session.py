"""Parameter-efficient tuning on the first experience alone, which APER and RanPAC share."""

from __future__ import annotations

import copy
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from cl_bench import Backbone, Batch, CosineHead, Experience, UserError, attach
from cl_bench.ranges import Amount, Count, Whole

from ._frozen_trunk import FrozenTrunk

SSF_SITES = r"patch_embed\.proj|blocks\.\d+\.(norm1|norm2|attn\.(qkv|proj)|mlp\.(fc1|fc2))|norm"
PETS = ("adapter", "ssf", "vpt_shallow", "vpt_deep", "finetune", "none")


class FirstSession(FrozenTrunk):
    """Trains ``pet`` and a temporary cosine head on the first experience, then never again.

    ``none`` trains nothing. ``finetune`` trains the whole backbone and keeps a copy of the frozen one.
    """

    def __init__(
        self, backbone: Backbone, *, lr: Amount, epochs: Whole, batch_size: Count, pet: str, weight_decay: Amount
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.pet, self.weight_decay, self.learned = pet, weight_decay, 0
        self.temporary: CosineHead | None = None
        self.frozen: Backbone | None = None
        if pet == "adapter":
            self.adapters = attach(backbone, "adaptformer", r"blocks\.\d+", r=64)
        elif pet == "ssf":
            self.adapters = attach(backbone, "ssf", SSF_SITES, std=0.02)
        elif pet in ("vpt_shallow", "vpt_deep"):
            self.adapters = attach(backbone, pet, r"blocks\.\d+", p=5, init="zeros")
        elif pet == "finetune":
            self.frozen = copy.deepcopy(backbone).requires_grad_(False)
        elif pet == "none":
            backbone.requires_grad_(False)
        else:
            raise UserError(f"pet={pet!r} is none of {', '.join(PETS)}.")

    def epochs_for(self, exp: Experience) -> int:
        return self.epochs if self.learned == 0 and self.pet != "none" else 0

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        if self.epochs_for(exp):
            self.temporary = CosineHead(self.backbone.num_features).to(self.device, self.dtype)
            self.temporary.grow(exp.space)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert self.temporary is not None
        logits = self.temporary(self.backbone.forward_features(batch.x))
        return F.cross_entropy(logits, self.temporary.columns(batch.y))

    def configure_optimizers(self) -> Any:
        return self.sgd(weight_decay=self.weight_decay)

    def end(self, exp: Experience) -> None:
        self.temporary = None
        self.backbone.requires_grad_(False)
        self.learned += 1

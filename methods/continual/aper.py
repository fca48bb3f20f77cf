"""APER (Zhou et al., "Revisiting Class-Incremental Learning with Pre-Trained Models", IJCV 2024, arXiv 2303.07338,
github.com/zhoudw-zdw/RevisitingCIL): adapt on the first task, then prototypes on frozen and adapted features together."""

from __future__ import annotations

from contextlib import nullcontext
from typing import ClassVar, Literal

import torch
from torch import Tensor

from cl_bench import Backbone, Experience, PrototypeHead
from cl_bench.heads import Head
from cl_bench.ranges import Amount, Count, Whole

from ._first_session import FirstSession

__all__ = ["APER"]


class APER(FirstSession):
    """Class means of ``[frozen features; features tuned on the first experience]``, compared by cosine (formerly ADAM).

    The first experience trains the tuned part and a temporary cosine head with cross-entropy, SGD with momentum 0.9 and
    a cosine rate; later ones train nothing. Features are joined as they are, without normalising either.

    Published settings beside the default (adapter, 64 hidden units): ``finetune`` 5 epochs of 128 images; ``ssf`` as the
    adapter; ``vpt_shallow`` 5 tokens, as the adapter; ``vpt_deep`` 5 epochs of 16 images at 0.05.

    Args:
        pet: what is tuned: ``adapter``, ``ssf``, ``vpt_shallow``, ``vpt_deep``, or ``finetune`` (everything).
    """

    family: ClassVar[str] = "prototype"
    paper: ClassVar[str] = "Zhou et al., APER, IJCV 2024"

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 0.01,
        epochs: Whole = 20,
        batch_size: Count = 48,
        pet: Literal["adapter", "ssf", "vpt_shallow", "vpt_deep", "finetune"] = "adapter",
        weight_decay: Amount = 5e-4,
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size, pet=pet, weight_decay=weight_decay)

    def make_head(self) -> Head:
        return PrototypeHead(2 * self.backbone.num_features)

    def features(self, x: Tensor) -> Tensor:
        """Frozen and tuned features side by side (N, 2 d)."""
        with torch.no_grad():
            plain = self.frozen if self.frozen is not None else self.backbone
            with self.adapters.off() if self.frozen is None else nullcontext():
                before = plain.forward_features(x)
        return torch.cat([before, self.backbone.forward_features(x)], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    @torch.no_grad()
    def end(self, exp: Experience) -> None:
        super().end(exp)
        assert isinstance(self.head, PrototypeHead)
        self.eval()
        for batch in self.plain(exp):
            self.head.add(self.features(batch.x), batch.y)

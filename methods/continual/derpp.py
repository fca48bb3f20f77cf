"""Buzzega et al., "Dark Experience for General Continual Learning: a Strong, Simple Baseline", NeurIPS 2020 (DER++;
aimagelab/mammoth).

The memory keeps the answers that the network gave when it stored an image, and asks for the same answers later.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench import Backbone, Batch, Method
from cl_bench.memory import Reservoir
from cl_bench.ranges import Amount, Count, Whole

from .._differs import Differs

__all__ = ["Derpp"]


class Derpp(Method):
    """Dark Experience Replay++: replay of stored logits (alpha) and of stored labels (beta), independent draws.

    L = CE(x, y) + alpha * MSE(h(x'), z') + beta * CE(x'', y''). The logits z are those of training, at insertion, and
    are never refreshed. SGD without momentum. Deviation: a head that grows has no units for classes to come, so z is
    compared on the units that existed at insertion. The official network has all C_total units from the start and averages
    over them, so that the same alpha weighs an image's C_known units C_total / C_known times as much here (five times after
    the first of five experiences): the published alpha is ``alpha * C_known / C_total`` here.

    Args:
        buffer_size, alpha, beta, lr: the official Split-CIFAR-100 setting with 500 images; its 50 epochs are for training
            from scratch.
        minibatch: stored images per draw.
    """

    family: ClassVar[str] = "replay"
    paper: ClassVar[str] = "Buzzega et al., NeurIPS 2020"
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("The mean square is over all units, those of classes to come too, so alpha weighs known units "
                "C_total / C_known times less.",
                "aimagelab/mammoth@e75a491c models/derpp.py:44", table="released code"),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 0.03,
        epochs: Whole = 10,
        batch_size: Count = 32,
        buffer_size: Count = 500,
        minibatch: Count = 32,
        alpha: Amount = 0.3,
        beta: Amount = 0.5,
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.buffer_size, self.minibatch, self.alpha, self.beta = buffer_size, minibatch, alpha, beta
        self.memory = Reservoir(buffer_size, extras=("logits",))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        generator = self.rng.on("cpu")
        logits = self(batch.x)
        loss = self.loss(logits, batch.y)
        if self.memory.samples:
            rows = self.memory.draw_rows(self.minibatch, generator)
            loss = loss + self.alpha * dark(self(self.memory.read(rows).x), self.memory.extra("logits", rows))
            again = self.memory.draw(self.minibatch, generator)
            loss = loss + self.beta * self.loss(self(again.x), again.y)
        self.memory.add(batch.x, batch.y, generator, logits=logits)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=self.lr)


def dark(logits: Tensor, stored: Tensor) -> Tensor:
    """Mean squared difference on the units that existed when ``stored`` (N, C' <= C, NaN where undefined) was kept."""
    now = logits[:, : stored.shape[1]]
    known = ~stored.isnan()
    return F.mse_loss(now[known], stored[known].to(now.dtype))

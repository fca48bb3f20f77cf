"""Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", 2019 (experience replay); settings of Mammoth
(Buzzega et al., NeurIPS 2020).

Every batch is trained together with a batch drawn from a small reservoir of old images.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from cl_bench import Backbone, Batch, Method
from cl_bench.memory import Reservoir
from cl_bench.ranges import Amount, Count, Whole

__all__ = ["Er"]


class Er(Method):
    """Experience Replay with a reservoir: one cross-entropy over the batch and as many stored images.

    As in Mammoth, images of every epoch are offered to the reservoir, and what is stored counts as it was trained on
    (deviation: augmented once, not anew at each reading). SGD without momentum.

    Args:
        buffer_size: stored images (200, 500 and 5120 in the papers).
        minibatch: stored images per step.
        lr, epochs: Mammoth has 0.1 and 50 for a ResNet-18 from scratch on Split-CIFAR-10; a pretrained transformer
            does not survive 0.1, so the default is Mammoth's 0.03 for the other replay methods.
    """

    family: ClassVar[str] = "replay"
    paper: ClassVar[str] = "Chaudhry et al., arXiv 1902.10486, 2019"
    shares_batches: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 0.03,
        epochs: Whole = 5,
        batch_size: Count = 32,
        buffer_size: Count = 500,
        minibatch: Count = 32,
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.buffer_size, self.minibatch = buffer_size, minibatch
        self.memory = Reservoir(buffer_size)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y = batch
        if self.memory.samples:
            old = self.portion(self.memory.draw(self.minibatch, self.rng.on("cpu")))
            x, y = torch.cat([x, old.x]), torch.cat([y, old.y])
        every = self.whole(batch)
        self.memory.add(every.x, every.y, self.rng.on("cpu"))
        return self.loss(self(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=self.lr)

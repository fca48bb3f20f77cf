"""Learning one experience: begin, Lightning's fit on a fresh Trainer, end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import Callback
from torch import Tensor

from ..method import Method
from ..rng import Rng
from ..types import Experience
from .compute import Compute, resolve_device
from .feed import Feed
from .optimizers import fuse
from .seeding import derive, seeded
from .trainer import interruptible, make_trainer, quiet

__all__ = ["Fitted", "fit"]

LOSS_POINTS = 200  # per experience: enough for a curve, few enough for a thousand runs


class _Losses(Callback):
    """Keeps every step's loss on the device; read once, after the fit."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self.values.append(loss.detach())


class _Fuse(Callback):
    """Puts fused kernels under the optimizers that the method has just made."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        trainer.optimizers = [fuse(optimizer, self.kind) for optimizer in trainer.optimizers]


@dataclass
class Fitted:
    """What a fit left behind: (step, loss) points, how many losses were not finite, optimizer steps, and how many
    parameters were trainable."""

    losses: list[tuple[int, float]]
    nonfinite: int
    steps: int
    trainable: int


def fit(method: Method, exp: Experience, compute: Compute, seed: int, max_epochs: int | None = None) -> Fitted:
    """``begin`` -> Lightning's fit on a fresh Trainer -> ``end``, all random draws from ``seed``."""
    device = resolve_device(compute.device)
    with seeded(seed), quiet(), interruptible():
        method.rng = Rng(derive(seed, "method"))
        method.to(device)
        method.train()
        method.begin(exp)
        method.to(device)
        trainable = sum(p.numel() for p in method.parameters() if p.requires_grad)
        epochs = method.epochs_for(exp)
        epochs = epochs if max_epochs is None else min(epochs, max_epochs)
        losses, steps = _Losses(), 0
        if epochs > 0:
            feed = Feed(method.training_data(exp), method.batch_size, device, workers=compute.workers, seed=seed,
                        augment=exp.augment)
            trainer = make_trainer(compute, epochs, [losses, _Fuse(compute.optimizers)])
            method.train()
            trainer.fit(method, feed)
            steps = int(trainer.global_step)
            method.to(device)  # Lightning leaves a model where its strategy put it
        method.end(exp)
        method.eval()
    values = torch.stack([v.float() for v in losses.values]).cpu().tolist() if losses.values else []
    stride = max(1, math.ceil(len(values) / LOSS_POINTS))
    points = [(k, v) for k, v in enumerate(values) if k % stride == 0 or k == len(values) - 1]
    return Fitted(points, sum(not math.isfinite(v) for v in values), steps, trainable)

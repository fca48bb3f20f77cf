"""RMT: a mean teacher with symmetric cross-entropy, contrast to source prototypes and source replay."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench import Backbone, Experience, columns_of
from cl_bench.adaptation import (
    Learning,
    Replay,
    TestTimeMethod,
    all_parameters,
    augment,
    batch_statistics,
    ema_,
    projection_head,
    prototype_contrast,
    prototypes,
    symmetric_cross_entropy,
    teacher_of,
)
from cl_bench.ranges import Amount, Count, Positive, Share, Size, Whole

__all__ = ["RMT"]


class RMT(TestTimeMethod):
    """Learns from a mean teacher by symmetric cross-entropy, with source prototypes and source replay as anchors.

    Doebler et al., "Robust Mean Teacher for Continual and Gradual Test-Time Adaptation", CVPR 2023
    (mariodoebler/test-time-adaptation). ``mark`` after ``deploy`` remembers the warmed-up model, so ``reset`` returns
    to it. The source-free variant of the paper's tables: ``source_weight=0, warmup=0`` (prototypes still come from
    source data).

    Args:
        lr: CIFAR 1e-3 with Adam; ImageNet 1e-2 with SGD.
        momentum: of the teacher.
        target_weight, contrast_weight, source_weight: of self-training, contrast and replay.
        temperature: of the contrastive loss.
        projection: width of the projector.
        warmup: source images seen before the stream, the learning rate rising linearly.
        replay: at most this many labelled source images are kept, as uint8.
    """

    paper: ClassVar[str] = "Doebler et al., CVPR 2023"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"imagenet": {"lr": 1e-2, "optimizer": "sgd"}}
    needs: ClassVar[frozenset[str]] = frozenset({"source"})
    output = "logit_sum"

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-3,
        optimizer: Literal["adam", "sgd"] = "adam",
        momentum: Share = 0.999,
        target_weight: Amount = 1.0,
        contrast_weight: Amount = 1.0,
        source_weight: Amount = 1.0,
        temperature: Positive = 0.1,
        projection: Size = 128,
        warmup: Whole = 50_000,
        replay: Count = 50_000,
        **learning: Learning,
    ) -> None:
        super().__init__(backbone, lr=lr, optimizer=optimizer, **learning)
        self.momentum, self.temperature, self.projection = momentum, temperature, projection
        self.target_weight, self.contrast_weight, self.source_weight = target_weight, contrast_weight, source_weight
        self.warmup, self.replay = warmup, replay

    def build(self, source: Experience | None) -> None:
        assert source is not None
        batch_statistics(self.model)
        self.store = Replay(source, self.replay, self.stream.batch_size, self.rng, self.model.where)
        self.prototypes = prototypes(self.model, self.store.all())
        self.teacher = teacher_of(self.model)
        self.projector = projection_head(self.prototypes.shape[1], self.projection, self.rng, self.prototypes)
        self.optimise(all_parameters(self.model), self.projector.parameters())
        steps = self.warmup // self.stream.batch_size
        for k in range(steps):
            self.set_rate(self.lr * (k + 1) / steps)
            x = self.store.draw(self.rng).x
            with torch.no_grad():
                target = self.teacher(x)
            if self.step(symmetric_cross_entropy(self.model(x), target).mean()):
                ema_(self.teacher, self.model, self.momentum)
        self.set_rate(self.lr)
        if self.source_weight == 0:
            del self.store

    def adapt(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.teacher(x)
        plain, other = self.model.features(x), self.model.features(augment(x, self.rng))
        z, z2 = self.model.classify(plain), self.model.classify(other)
        follow = 0.5 * symmetric_cross_entropy(z, target) + 0.5 * symmetric_cross_entropy(z2, target)
        pull = prototype_contrast(plain, other, self.prototypes, self.projector, self.temperature)
        loss = self.target_weight * follow.mean() + self.contrast_weight * pull
        if self.source_weight > 0:
            xs, ys = self.store.draw(self.rng)
            logits = self.model.head(self.model.features(xs))
            loss = loss + self.source_weight * F.cross_entropy(logits, columns_of(ys, self.model.head.space))
        if self.step(loss):
            ema_(self.teacher, self.model, self.momentum)
        return z + target

    def outputs(self, x: Tensor) -> Tensor:
        return self.model(x) + self.teacher(x)

    def set_rate(self, lr: float) -> None:
        """The step size from here on."""
        for group in self.opt.param_groups:
            group["lr"] = lr

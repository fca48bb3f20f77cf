"""RoTTA: robust statistics, a balanced memory of recent images, and a slow teacher, for correlated streams."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from cl_bench import Backbone, Experience
from cl_bench.adaptation import (
    CategoryBalancedMemory,
    Learning,
    RobustNorm,
    TestTimeMethod,
    augment,
    convert,
    cross_entropy_to,
    ema_,
    norm_parameters,
    teacher_of,
)
from cl_bench.ranges import Amount, Count, Share

from .._differs import Differs

__all__ = ["RoTTA"]


class RoTTA(TestTimeMethod):
    """Learns from a class-balanced, age-aware memory of test images under slowly moving norm statistics.

    Yuan et al., "Robust Test-Time Adaptation in Dynamic Scenarios", CVPR 2023 (BIT-DA/RoTTA). All images of a batch are
    answered before any update inside it; an update follows every ``frequency`` images. LayerNorm and GroupNorm layers
    are adapted too, as mariodoebler/test-time-adaptation does; the original adapts BatchNorm alone.

    Args:
        lr: 1e-3 with Adam on all data sets.
        nu: share of the student that enters the teacher at an update.
        alpha: share of the memory's statistics that enters the running ones.
        memory: capacity.
        frequency: images between updates.
        time, uncertainty: lambda_t and lambda_u of the memory's score.
    """

    paper: ClassVar[str] = "Yuan et al., CVPR 2023"
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("The authors' code exchanges and adapts BatchNorm alone; here LayerNorm and GroupNorm are adapted too.",
                "BIT-DA/RoTTA@67e34c90 core/adapter/rotta.py:80", table="released code"),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-3,
        optimizer: Literal["adam", "sgd"] = "adam",
        nu: Share = 0.001,
        alpha: Share = 0.05,
        memory: Count = 64,
        frequency: Count = 64,
        time: Amount = 1.0,
        uncertainty: Amount = 1.0,
        **learning: Learning,
    ) -> None:
        super().__init__(backbone, lr=lr, optimizer=optimizer, **learning)
        self.nu, self.alpha, self.memory, self.frequency = nu, alpha, memory, frequency
        self.time, self.uncertainty = time, uncertainty

    def build(self, source: Experience | None) -> None:
        convert(self.model, lambda norm: RobustNorm(norm, self.alpha))
        self.teacher = teacher_of(self.model)
        self.optimise(norm_parameters(self.model))
        self.narrowed()

    def narrowed(self) -> None:
        self.bank = CategoryBalancedMemory(self.memory, self.model.classes, self.time, self.uncertainty)
        self.arrived = 0

    def adapt(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            z = self.teacher(x)
            p = z.softmax(1)
            doubt = -(p * torch.log(p + 1e-6)).sum(1)
            labels, doubts = torch.stack((p.argmax(1).to(doubt), doubt)).tolist()
        for row, (label, h) in enumerate(zip(labels, doubts, strict=True)):
            if math.isfinite(h):  # an image that breaks the network would stay in the memory for long
                self.bank.add(row, int(label), h)
            self.arrived += 1
            if self.arrived % self.frequency == 0:
                self.bank.commit(x)
                self.update()
        self.bank.commit(x)
        return z

    def update(self) -> None:
        """One step of the student on augmented memory towards the teacher on plain memory, weighted by age."""
        if len(self.bank) == 0:
            return
        images, age = self.bank.images(), self.bank.ages()
        self.track(True)
        with torch.no_grad():
            target = self.teacher(images)
        z = self.model(augment(images, self.rng))
        self.track(False)
        young = torch.exp(-age) / (1 + torch.exp(-age))
        if self.step((young * cross_entropy_to(target, z)).mean()):
            ema_(self.teacher, self.model, 1 - self.nu)

    def track(self, on: bool) -> None:
        """Whether forward passes move the running statistics of student and teacher."""
        for layer in (*self.model.modules(), *self.teacher.modules()):
            if isinstance(layer, RobustNorm):
                layer.train(on)

    def outputs(self, x: Tensor) -> Tensor:
        return self.teacher(x)

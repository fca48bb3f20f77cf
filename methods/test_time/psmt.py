"""PSMT: a mean teacher in which Fisher information and gradients decide which parameters may change."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from cl_bench_ops import selective_ema_
from torch import Tensor

from cl_bench import Backbone, Experience, UserError
from cl_bench.adaptation import (
    Learning,
    TestTimeMethod,
    all_parameters,
    augmented_outputs,
    batch_statistics,
    cross_entropy_to,
    ema_,
    fisher,
    source_batches,
    symmetric_cross_entropy,
    teacher_of,
)
from cl_bench.ranges import Amount, Count, Share, Size

from .._differs import Differs

__all__ = ["PSMT"]


class PSMT(TestTimeMethod):
    """A mean teacher with a Fisher penalty on the student and a mask that decides which weights may move.

    Tian & Lyu, "Parameter-Selective Continual Test-Time Adaptation", ACCV 2024 (JiaxuTian/PSMT). Paper and code are
    different algorithms:

    ``variant="code"`` (the default) holds the student near the source by source Fisher information, returns the
    ``fraction`` of weights with the smallest squared gradient (penalty included) to their source value in student and
    teacher, and averages the others into the teacher twice. The code's 32 teacher forwards and its second student
    forward see the same images and give the same numbers; one of each is computed here.

    ``variant="paper"`` holds the student near its previous weights by the previous batch's Fisher information, takes
    labels averaged over augmentations where the source is unsure, and keeps the teacher's most important weights. The
    paper names no threshold of importance: here the ``fraction`` with the largest Fisher information is important.

    Args:
        lr: 1e-3 with Adam; the authors name no ImageNet value (CoTTA's: SGD 1e-2).
        fisher_weight: lambda.
        fraction: q.
        momentum: of the teacher.
        fisher_samples: source images for the source Fisher information.
        threshold, augmentations: as CoTTA's; the paper's variant only.
    """

    paper: ClassVar[str] = "Tian & Lyu, ACCV 2024"
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("Paper and code are different algorithms: which weights may move, what holds the student, and whether labels "
                "are averaged over augmentations.", "JiaxuTian/PSMT@2c743358 classification/methods/psmt.py:181",
                table="released code", here=({"variant": "code"}, {"variant": "paper"})),
    )
    needs: ClassVar[frozenset[str]] = frozenset({"source"})
    output = "logit_sum"

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-3,
        optimizer: Literal["adam", "sgd"] = "adam",
        fisher_weight: Amount = 500.0,
        fraction: Share = 0.03,
        momentum: Share = 0.999,
        fisher_samples: Count = 10_000,
        variant: Literal["code", "paper"] = "code",
        threshold: Share = 0.92,
        augmentations: Size = 32,
        **learning: Learning,
    ) -> None:
        super().__init__(backbone, lr=lr, optimizer=optimizer, **learning)
        if variant not in ("code", "paper"):
            raise UserError(f"variant {variant!r} is not known; use code or paper.")
        self.fisher_weight, self.fraction, self.momentum = fisher_weight, fraction, momentum
        self.fisher_samples = fisher_samples
        self.variant, self.threshold, self.augmentations = variant, threshold, augmentations

    def build(self, source: Experience | None) -> None:
        assert source is not None
        batch_statistics(self.model)
        self.teacher = teacher_of(self.model)
        self.optimise(all_parameters(self.model))
        if self.variant == "code":
            data = source_batches(source, self.stream.batch_size, self.rng, self.model.where, self.fisher_samples)
            self.importance = fisher(self.model, self.trained(), data)
        else:
            self.anchor = teacher_of(self.model)
            self.importance = [torch.zeros_like(p) for p in self.start]
        self.centre = [p.clone() for p in self.start]

    def adapt(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.teacher(x) if self.variant == "code" else self.label(x)
        z = self.model(x)
        fit = symmetric_cross_entropy(z, target) if self.variant == "code" else cross_entropy_to(target, z)
        if not self.gradient(fit.mean() + self.penalty()):
            return z + target
        with torch.no_grad():
            squared = [torch.zeros_like(p) if p.grad is None else p.grad.square() for p in self.trained()]
            before = [p.clone() for p in self.trained()] if self.variant == "paper" else []
        self.take_step()
        with torch.no_grad():
            student, teacher = self.trained(), all_parameters(self.teacher)
            if self.variant == "code":
                threshold = quantile(squared, self.fraction)
                restored = [g < threshold for g in squared]
                ema_(self.teacher, self.model, self.momentum)
                selective_ema_(student, student, restored, 1.0, fill=self.start)
                selective_ema_(teacher, student, restored, self.momentum, fill=student)
            else:
                threshold = quantile(squared, 1 - self.fraction)
                selective_ema_(teacher, student, [g > threshold for g in squared], self.momentum)
                self.importance, self.centre = squared, before
        return z + target

    def outputs(self, x: Tensor) -> Tensor:
        return self.model(x) + self.teacher(x)

    def label(self, x: Tensor) -> Tensor:
        """The teacher's logits, averaged over augmentations where the source model is unsure."""
        if self.anchor(x).softmax(1).amax(1).mean() < self.threshold:
            return augmented_outputs(self.teacher, x, self.augmentations, self.rng).mean(0)
        return self.teacher(x)

    def penalty(self) -> Tensor:
        """lambda sum F (theta - theta_0)^2 (code), or with F and theta of the batch before (paper)."""
        parts = zip(self.importance, self.trained(), self.centre, strict=True)
        return self.fisher_weight * torch.stack([(f * (p - c).square()).sum() for f, p, c in parts]).sum()


def quantile(values: list[Tensor], q: float) -> Tensor:
    """The q-quantile of all elements together, interpolated linearly; any number of elements (torch.quantile stops at
    16 million)."""
    flat = torch.cat([v.flatten() for v in values])
    at = q * (flat.numel() - 1)
    low = math.floor(at)
    below = flat.kthvalue(low + 1).values
    above = flat.kthvalue(min(low + 2, flat.numel())).values
    return below.lerp(above, at - low)

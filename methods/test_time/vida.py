"""ViDA: low-rank and high-rank adapters beside the attention layers, blended by uncertainty, under a mean teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench import Backbone, Experience, Rng, UserError
from cl_bench.adaptation import (
    Learning,
    TestTimeMethod,
    augmented_outputs,
    cross_entropy_to,
    stochastic_restore_,
    symmetric_cross_entropy,
    teacher_of,
)
from cl_bench.ranges import Amount, Share, Size

from .._differs import Differs

__all__ = ["ViDA"]


class VidaLinear(nn.Module):
    """y = W x + b + s1 U1 D1 x + s2 U2 D2 x with D drawn from N(0, 1 / rank^4) and U = 0: starts as the layer it holds."""

    def __init__(self, linear: nn.Linear, low: Size, high: Size, rng: Rng) -> None:
        super().__init__()
        self.linear = linear
        self.scale1 = self.scale2 = 1.0
        for k, rank in ((1, low), (2, high)):
            down = torch.randn(rank, linear.in_features, generator=rng.on("cpu")) / rank**2
            setattr(self, f"vida_down{k}", nn.Parameter(down.to(linear.weight)))
            setattr(self, f"vida_up{k}", nn.Parameter(linear.weight.new_zeros(linear.out_features, rank)))

    def forward(self, x: Tensor) -> Tensor:
        one = F.linear(F.linear(x, self.vida_down1), self.vida_up1)
        two = F.linear(F.linear(x, self.vida_down2), self.vida_up2)
        return self.linear(x) + self.scale1 * one + self.scale2 * two


class ViDA(TestTimeMethod):
    """Domain-shared (rank 1) and domain-specific (rank 128) adapters in every attention layer, and a mean teacher.

    Liu et al., "ViDA: Homeostatic Visual Domain Adapter for Continual Test Time Adaptation", ICLR 2024
    (Yangsenqiao/vida). Transformers with attention made of ``nn.Linear`` layers (timm's); no ResNet form was released.
    Deviations: adapters start as drawn, the recipe of the authors' warmed-up checkpoints not being published;
    augmentations work on the images as they come, the official CIFAR files enlarge them to 384 first.

    Args:
        lr, adapter_lr: of the model and of the adapters. CIFAR-10 1e-4 and 1e-5 with Adam (CIFAR-100 3e-4 and 1e-6);
            ImageNet 5e-7 and 2e-7 with SGD.
        momentum, adapter_momentum: of the teacher; ImageNet 0.999 and 0.8.
        threshold: uncertainty from which the high-rank branch is favoured; CIFAR 0.05, ImageNet (and the paper) 0.2.
        restore: probability per weight and batch to return to the start; 0.1 as the official CIFAR driver runs, ImageNet 0.
        symmetric: symmetric cross-entropy (ImageNet) in place of the plain one (CIFAR).
        variant: ``code`` sets the low-rank branch's scale alone; ``paper`` sets both.
        low, high: ranks.
        views: augmentations over which the teacher's logits vary.
    """

    paper: ClassVar[str] = "Liu et al., ICLR 2024"
    differs = (Differs("The setter of the two branches' scales never reaches the second.",
                       "Yangsenqiao/vida@c26b0db2 cifar/vida.py:106", table="released code",
                       here=({"variant": "code"}, {"variant": "paper"})),)
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cifar100": {"lr": 3e-4, "adapter_lr": 1e-6},
        "imagenet": {"lr": 5e-7, "adapter_lr": 2e-7, "optimizer": "sgd", "momentum": 0.999, "adapter_momentum": 0.8,
                     "threshold": 0.2, "restore": 0.0, "symmetric": True},
    }

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-4,
        adapter_lr: Amount = 1e-5,
        optimizer: Literal["adam", "sgd"] = "adam",
        momentum: Share = 0.999, adapter_momentum: Share = 0.999,
        threshold: Amount = 0.05, restore: Share = 0.1,
        symmetric: bool = False,
        variant: Literal["code", "paper"] = "code",
        low: Size = 1, high: Size = 128, views: Size = 10, **learning: Learning,
    ) -> None:
        super().__init__(backbone, lr=lr, optimizer=optimizer, **learning)
        if variant not in ("code", "paper"):
            raise UserError(f"variant {variant!r} is not known; use code or paper.")
        self.adapter_lr, self.momentum, self.adapter_momentum = adapter_lr, momentum, adapter_momentum
        self.threshold, self.restore, self.symmetric, self.variant = threshold, restore, symmetric, variant
        self.low, self.high, self.views = low, high, views
        if not _sites(backbone):
            raise UserError("ViDA adapts the linear layers inside attention and found none; use a timm transformer.")

    def build(self, source: Experience | None) -> None:
        for module, name, linear in _sites(self.model):
            setattr(module, name, VidaLinear(linear, self.low, self.high, self.rng))
        self.teacher = teacher_of(self.model)
        named = list(self.model.named_parameters())
        self.optimise([p for n, p in named if "vida_" not in n], [p for n, p in named if "vida_" in n])

    def _optimizer(self, groups: Sequence[Sequence[nn.Parameter]]) -> torch.optim.Optimizer:
        opt = super()._optimizer(groups)
        opt.param_groups[1]["lr"] = self.adapter_lr
        return opt

    def trained(self) -> list[nn.Parameter]:
        return [p for group in self.opt.param_groups for p in group["params"]]

    def adapt(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            spread = augmented_outputs(self.teacher, x, self.views, self.rng).var(0).mean()
            self.blend(0.1 * float(spread))
            target = self.teacher(x)
        z = self.model(x)
        loss = symmetric_cross_entropy(z, target) if self.symmetric else cross_entropy_to(target, z)
        if self.step(loss.mean()):
            self.follow()
            stochastic_restore_(self.trained(), self.start, self.restore, self.rng)
        return target

    def blend(self, uncertainty: float) -> None:
        """Favour the high-rank branch where the teacher is unsure, the low-rank one where it is not."""
        low = 1 - uncertainty if uncertainty >= self.threshold else 1 + uncertainty
        for layer in (*self.model.modules(), *self.teacher.modules()):
            if isinstance(layer, VidaLinear):
                layer.scale1 = low
                if self.variant == "paper":
                    layer.scale2 = 2 - low

    @torch.no_grad()
    def follow(self) -> None:
        """teacher <- m teacher + (1 - m) student, adapters with a momentum of their own."""
        new = dict(self.model.named_parameters())
        for name, p in self.teacher.named_parameters():
            p.lerp_(new[name], 1 - (self.adapter_momentum if "vida_" in name else self.momentum))

    def outputs(self, x: Tensor) -> Tensor:
        return self.teacher(x)


def _sites(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """(layer, name, linear) of every linear layer inside attention."""
    return [(module, name, child) for module in model.modules()
            if "Attention" in type(module).__name__ and not isinstance(module, nn.MultiheadAttention)
            for name, child in module.named_children() if isinstance(child, nn.Linear)]

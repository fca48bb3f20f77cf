"""MEMO: adapt to each single image by making its prediction certain on average over its augmentations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from cl_bench import Backbone, Experience, UserError
from cl_bench.adaptation import Learning, MixedNorm, TestTimeMethod, convert
from cl_bench.ranges import Amount, Size, Whole

from .._differs import Differs
from ._augmix import augmix

__all__ = ["MEMO"]


class MEMO(TestTimeMethod):
    """One step per image on the entropy of the prediction averaged over augmented views; nothing is carried over.

    Zhang, Levine and Finn, "MEMO: Test Time Robustness via Adaptation and Augmentation", NeurIPS 2022
    (zhangmarvin/memo). Every image starts from the deployed weights and is answered after its step. BatchNorm layers
    mix source and own statistics with the paper's prior of 16 images; LayerNorm and GroupNorm stay as they are. The
    optimizer starts afresh with every image, which the official code forgets (it matters for AdamW alone). An image costs
    about ``views`` forward and backward passes.

    Args:
        lr: CIFAR 5e-3, ImageNet ResNet-50 2.5e-4 (both plain SGD), ImageNet RVT and ResNeXt 1e-5 with AdamW.
        optimizer: ``sgd`` without momentum, or ``adamw`` with weight decay 0.01.
        views: AugMix views per image; CIFAR 32, ImageNet 64.
        prior: N of the norm mode: own statistics weigh 1 / (N + 1), those of the views as a whole while adapting (the
            code counts them as one image) and the image's when it is answered.
    """

    paper: ClassVar[str] = "Zhang et al., NeurIPS 2022"
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("The optimizer is made once, so that AdamW's moments pass from image to image; the paper resets everything.",
                "zhangmarvin/memo@228b2908 imagenet-exps/test_calls/test_adapt.py:49", table="released code"),
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {"imagenet": {"lr": 2.5e-4, "views": 64}}

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 5e-3,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        views: Size = 32,
        prior: Whole = 16,
        **learning: Learning,
    ) -> None:
        super().__init__(backbone, lr=lr, optimizer="sgd", **learning)
        if optimizer not in ("sgd", "adamw"):
            raise UserError(f"optimizer {optimizer!r} is not known to MEMO; use sgd or adamw.")
        self.optimizer = optimizer  # type: ignore[assignment]
        self.views, self.prior = views, prior

    def build(self, source: Experience | None) -> None:
        convert(self.model, lambda norm: MixedNorm(norm, 1 / (self.prior + 1)))
        self.optimise(self.model.parameters())

    def _optimizer(self, groups: Sequence[Sequence[nn.Parameter]]) -> torch.optim.Optimizer:
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups[0], lr=self.lr)
        return torch.optim.AdamW(groups[0], lr=self.lr, weight_decay=0.01)

    def adapt(self, x: Tensor) -> Tensor:
        answers = []
        for k in range(len(x)):
            self.step(self.marginal_entropy(x[k]))
            answers.append(self.outputs(x[k : k + 1]))
            self.forget()
        return torch.cat(answers)

    def marginal_entropy(self, image: Tensor) -> Tensor:
        """Entropy of the mean prediction over views of one image (3, H, W)."""
        log_p = self.model(augmix(image, self.views, self.rng)).log_softmax(1)
        mean = log_p.logsumexp(0) - math.log(self.views)
        return -(mean.exp() * mean.clamp_min(torch.finfo(mean.dtype).min)).sum()

    @torch.no_grad()
    def forget(self) -> None:
        """Back to the deployed weights and a fresh optimizer."""
        torch._foreach_copy_(self.trained(), self.start)
        self.opt.state.clear()
        torch.clear_autocast_cache()

    @torch.no_grad()
    def outputs(self, x: Tensor) -> Tensor:
        return torch.cat([self.model(image) for image in x.split(1)])  # normalised by itself, whatever arrives with it

"""AdaLoRA (Zhang et al., ICLR 2023, arXiv 2303.10512, github.com/QingruZhang/AdaLoRA): a rank budget shared by importance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..ranges import Amount, Share, Size
from .lora import LoRA

__all__ = ["AdaLoRA"]


class AdaLoRA(LoRA):
    """``W + s P diag(lambda) Q`` (B = P, A = Q), lambda zero at the start and P, Q ~ N(0, 0.02^2).

    ``watch`` follows the importance of every triplet after each backward pass; ``allocate`` closes the least important
    ones over all sites. ``aux_loss`` is ``orth`` times the mean over all matrices of ``|P^T P - I|`` and ``|Q Q^T - I|``.
    PEFT adds that term only to outputs with a ``loss`` field, so with image models it is silently missing there.
    """

    paper: ClassVar[str] = "Zhang et al., AdaLoRA, ICLR 2023"
    mean_loss: ClassVar[bool] = True
    smooth: Tensor
    unsure: Tensor

    def __init__(
        self,
        weight: Tensor,
        r: Size = 12,
        alpha: Amount | None = None,
        orth: Amount = 0.1,
        beta1: Share = 0.85,
        beta2: Share = 0.85,
    ) -> None:
        super().__init__(weight, r, alpha)
        self.orth, self.beta1, self.beta2 = orth, beta1, beta2
        self.gate = nn.Parameter(weight.new_zeros(self.r))
        total = self.A.numel() + self.B.numel() + self.r
        self.register_buffer("smooth", weight.new_zeros(total))
        self.register_buffer("unsure", weight.new_zeros(total))
        self.reset(weight)

    @torch.no_grad()
    def reset(self, weight: Tensor) -> None:
        self.A.normal_(0.0, 0.02)
        self.B.normal_(0.0, 0.02)
        self.gate.zero_()
        self.smooth.zero_()
        self.unsure.zero_()

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * ((self.B * self.gate) @ self.A)

    def factors(self) -> tuple[Tensor, Tensor]:
        keep = self.gate != 0
        return self.A[keep], self.scale * (self.B * self.gate)[:, keep]

    def aux_loss(self) -> Tensor:
        eye = torch.eye(self.r, dtype=self.A.dtype, device=self.A.device)
        return self.orth * ((self.B.T @ self.B - eye).norm() + (self.A @ self.A.T - eye).norm()) / 2

    @torch.no_grad()
    def watch(self) -> None:
        """Update the importances from the gradients; between backward and step, with unscaled gradients."""
        now = torch.cat(
            [
                (p * p.grad).abs().flatten() if p.grad is not None else torch.zeros_like(p).flatten()
                for p in (self.A, self.B, self.gate)
            ]
        )
        self.smooth.mul_(self.beta1).add_(now, alpha=1 - self.beta1)
        self.unsure.mul_(self.beta2).add_((now - self.smooth).abs(), alpha=1 - self.beta2)

    def scores(self) -> Tensor:
        """Importance of each triplet (r,): that of lambda plus the means over its column of P and row of Q."""
        s = self.smooth * self.unsure
        n = self.A.numel()
        a, b, g = s[:n].view_as(self.A), s[n : n + self.B.numel()].view_as(self.B), s[-self.r :]
        return g + a.mean(1) + b.mean(0)

    @staticmethod
    @torch.no_grad()
    def allocate(adapters: Sequence[AdaLoRA], budget: int) -> None:
        """Set lambda to zero for all but the ``budget`` most important triplets of all sites together."""
        scores = torch.cat([a.scores() for a in adapters])
        if budget >= len(scores):
            return
        keep = torch.zeros_like(scores, dtype=torch.bool)
        keep[scores.topk(budget).indices] = True
        for adapter, mask in zip(adapters, keep.split([a.r for a in adapters]), strict=True):
            adapter.gate.mul_(mask)

    @staticmethod
    def budget(step: int, total: int, start: int, final: int, t_initial: int, t_final: int) -> int:
        """The total rank at ``step``: ``start``, then a cubic fall to ``final``, constant for the last ``t_final``."""
        if step <= t_initial:
            return start
        if step >= total - t_final:
            return final
        left = 1 - (step - t_initial) / (total - t_final - t_initial)
        return int(final + (start - final) * left**3)

    def peft_tensors(self) -> tuple[dict[str, Tensor], int, float, dict[str, Any]] | None:
        tensors = {"lora_A": self.A, "lora_B": self.B, "lora_E": self.gate.unsqueeze(1)}
        extra = {"peft_type": "ADALORA", "init_r": self.r, "target_r": self.r, "total_step": 1, "tinit": 0, "tfinal": 0}
        return tensors, self.r, self.scale * self.r, extra

    def read_peft(self, tensors: dict[str, Tensor]) -> None:
        self.A.copy_(tensors["lora_A"])
        self.B.copy_(tensors["lora_B"])
        self.gate.copy_(tensors["lora_E"].flatten())

    @classmethod
    def count(cls, out: int, inp: int, r: int = 12, **settings: Any) -> int:
        return min(r, out, inp) * (out + inp + 1)

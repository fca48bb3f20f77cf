"""AdaLoRA (Zhang et al., ICLR 2023, arXiv 2303.10512, github.com/QingruZhang/AdaLoRA): a rank budget shared by importance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..ranges import Amount, Count, Share, Size
from ._base import Adapter
from .lora import LoRA

__all__ = ["AdaLoRA"]

_TINY = 1e-5  # beside the rank in the scale, as in the authors' code and in PEFT


class AdaLoRA(LoRA):
    """``W + alpha / (r + 1e-5) P diag(lambda) Q`` (B = P, A = Q), lambda zero at the start and P, Q ~ N(0, 0.02^2).

    After every optimizer step ``steer`` follows the importance of every triplet and closes the least important ones over
    all sites, to a budget that falls from ``r`` to ``target_r`` per site as a cubic; in the last phase importances stand
    still and the same triplets are closed again after every step (loralib/adalora.py, RankAllocator). ``aux_loss`` is
    ``orth`` times the mean over all matrices of ``|P^T P - I|`` and ``|Q Q^T - I|``. PEFT adds that term only to outputs with
    a ``loss`` field, so with image models it is silently missing there.

    Args:
        first, last: shares of the steps before the budget falls and after; ``interval``: steps between two closings. Where
            ``first`` is less than one step nothing is closed.
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
        target_r: Size = 8,
        first: Share = 0.1,
        last: Share = 0.5,
        interval: Count = 1,
    ) -> None:
        super().__init__(weight, r, alpha)
        self.scale = float(self.r if alpha is None else alpha) / (self.r + _TINY)
        self.orth, self.beta1, self.beta2 = orth, beta1, beta2
        self.target_r, self.first, self.last, self.interval = target_r, first, last, interval
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
        """Update the importances from the gradients of the step that was just made, at the weights that it led to."""
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
    def allocate(adapters: Sequence[AdaLoRA], budget: int) -> float | None:
        """Set lambda to zero for all triplets of all sites together but the ``budget`` most important ones: for those whose
        score is at most the (total - budget)-th smallest, which is returned; None where nothing is to be closed."""
        scores = torch.cat([a.scores() for a in adapters])
        if budget >= len(scores):
            return None
        threshold = scores.kthvalue(len(scores) - budget).values
        for adapter, score in zip(adapters, scores.split([a.r for a in adapters]), strict=True):
            adapter.gate.masked_fill_(score <= threshold, 0.0)
        return float(threshold)

    @staticmethod
    def budget(step: int, total: int, start: int, final: int, t_initial: int, t_final: int) -> int:
        """The total rank at ``step``: ``start``, then a cubic fall to ``final``, constant for the last ``t_final``."""
        if step <= t_initial:
            return start
        if step > total - t_final:
            return final
        left = 1 - (step - t_initial) / (total - t_final - t_initial)
        return int(final + (start - final) * left**3)

    @staticmethod
    def update(adapters: Sequence[AdaLoRA], step: int, total: int, final: int, t_initial: int, t_final: int,
               interval: int) -> tuple[int, float | None]:
        """After optimizer step ``step`` (from 1) of ``total``: importances, then closing. Returns (budget, threshold)."""
        if step < total - t_final:
            for adapter in adapters:
                adapter.watch()
        asked = AdaLoRA.budget(step, total, sum(a.r for a in adapters), final, t_initial, t_final)
        falling = t_initial < step <= total - t_final and step % interval == 0
        closing = falling or (step > t_initial and step > total - t_final)
        return asked, AdaLoRA.allocate(adapters, asked) if closing else None

    @classmethod
    def steer(cls, adapters: Sequence[Adapter], step: int, total: int) -> None:
        mine = [a for a in adapters if isinstance(a, AdaLoRA)]
        one, final = mine[0], sum(min(a.target_r, a.r) for a in mine)
        if int(one.first * total) < 1:  # too short to know what is important: closing now would close everything
            return
        cls.update(mine, step, total, final, int(one.first * total), int(one.last * total), one.interval)

    def peft_tensors(self) -> tuple[dict[str, Tensor], int, float, dict[str, Any]] | None:
        tensors = {"lora_A": self.A, "lora_B": self.B, "lora_E": self.gate.unsqueeze(1)}
        extra = {"peft_type": "ADALORA", "init_r": self.r, "target_r": self.r, "total_step": 1, "tinit": 0, "tfinal": 0}
        return tensors, self.r, self.scale * (self.r + _TINY), extra

    def read_peft(self, tensors: dict[str, Tensor]) -> None:
        self.A.copy_(tensors["lora_A"])
        self.B.copy_(tensors["lora_B"])
        self.gate.copy_(tensors["lora_E"].flatten())

    @classmethod
    def count(cls, out: int, inp: int, r: int = 12, **settings: Any) -> int:
        return min(r, out, inp) * (out + inp + 1)

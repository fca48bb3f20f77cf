"""Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017 (EWC); online form: Schwarz et
al., "Progress & Compress", ICML 2018.

A quadratic pull towards the old weights, for each weight as strong as the old answers depend on it (Fisher).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from cl_bench import Backbone, Batch, Experience, Method, batches
from cl_bench.ranges import Amount, Count, Share, Whole

__all__ = ["Ewc"]


class Ewc(Method):
    """Elastic Weight Consolidation, offline (one anchor per experience) or online (one running anchor).

    L = CE + strength / 2 * sum_k F_k (theta_k - theta*_k)^2 with the diagonal Fisher F of per-image gradients, mean
    over the experience's images. Weights that did not exist at an anchor (rows of later classes) are free.

    Args:
        strength: lambda. It means nothing without the Fisher's flavour: 5000 with per-image means is FACIL's setting.
        mode: ``offline`` keeps every experience's Fisher and anchor; ``online`` has F <- gamma F + F_t and one anchor.
        gamma: decay of the online Fisher.
        fisher: ``empirical`` (true labels), ``sampled`` (labels drawn from the model) or ``exact`` (expectation over
            the model's labels). The square of a batch's mean gradient, which some libraries use, is none of these.
        fisher_images: images for the Fisher; 0 = all.
        masked: cross-entropy among the current classes only (for the task-incremental view).

    Deviation: AdamW in place of SGD.
    """

    family: ClassVar[str] = "regularisation"
    paper: ClassVar[str] = "Kirkpatrick et al., PNAS 2017; Schwarz et al., ICML 2018"

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-3,
        epochs: Whole = 5,
        batch_size: Count = 32,
        strength: Amount = 5000.0,
        mode: Literal["offline", "online"] = "offline",
        gamma: Share = 1.0,
        fisher: Literal["empirical", "sampled", "exact"] = "empirical",
        fisher_images: Whole = 0,
        masked: bool = False,
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.strength, self.mode, self.gamma, self.fisher = strength, mode, gamma, fisher
        self.fisher_images, self.masked = fisher_images, masked
        self.anchors = nn.ModuleList()

    def learned(self) -> dict[str, Tensor]:
        """The parameters that training moves, by name."""
        return {n: p for n, p in self.named_parameters() if p.requires_grad}

    def penalty(self) -> Tensor:
        """sum over anchors of 1/2 sum_k F_k (theta_k - theta*_k)^2."""
        now = self.learned()
        return torch.stack([a.penalty(now) for a in self.anchors]).sum()  # type: ignore[operator]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(self(batch.x), batch.y, self.current if self.masked else None)
        return loss + self.strength * self.penalty() if len(self.anchors) else loss

    def end(self, exp: Experience) -> None:
        fresh = Anchor(self.learned(), self.diagonal(exp))
        if self.mode == "online" and len(self.anchors):
            fresh.absorb(self.anchors[0], self.gamma)  # type: ignore[arg-type]
            self.anchors = nn.ModuleList([fresh])
        else:
            self.anchors.append(fresh)

    def diagonal(self, exp: Experience) -> dict[str, Tensor]:
        """The diagonal Fisher of the experience's images at the current weights, in evaluation mode."""
        was = self.training
        self.eval()
        params = {n: p.detach() for n, p in self.learned().items()}
        total = {n: torch.zeros_like(p) for n, p in params.items()}
        # vmap holds one gradient per image (and per class when exact): keep that within about a hundred megabytes
        width = sum(p.numel() for p in params.values()) * (len(self.head.space) if self.fisher == "exact" else 1)
        chunk, count = max(1, min(64, 25_000_000 // max(1, width))), 0

        def log_p(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            return F.log_softmax(functional_call(self, weights, (x.unsqueeze(0),)), dim=1)[0]

        def of_label(weights: dict[str, Tensor], x: Tensor, column: Tensor) -> Tensor:
            return log_p(weights, x).gather(0, column.view(1))[0]

        generator = self.rng.on("cpu")
        # vmap has no batching rule for fused attention: the plain form is faster here, and the same function
        with sdpa_kernel(SDPBackend.MATH):
            for x, y in batches(exp.data, chunk, shuffle=True, generator=generator, device=self.device):
                with torch.no_grad():
                    p = F.softmax(self(x), dim=1)
                if self.fisher == "exact":
                    jacobians = vmap(jacrev(log_p), (None, 0))(params, x)
                    squares = {n: (p.view(*p.shape, *[1] * (j.ndim - 2)) * j**2).sum((0, 1)) for n, j in jacobians.items()}
                else:
                    column = self.head.columns(y)
                    if self.fisher == "sampled":
                        column = torch.multinomial(p.cpu(), 1, generator=generator)[:, 0].to(x.device)
                    squares = {n: (g**2).sum(0) for n, g in vmap(grad(of_label), (None, 0, 0))(params, x, column).items()}
                for n, s in squares.items():
                    total[n] += s.detach()
                count += len(y)
                if self.fisher_images and count >= self.fisher_images:
                    break
        self.train(was)
        return {n: t / count for n, t in total.items()}


class Anchor(nn.Module):
    """Weights theta* and their Fisher F, as buffers in the order of ``names``."""

    def __init__(self, theta: dict[str, Tensor], fisher: dict[str, Tensor]) -> None:
        super().__init__()
        self.names = list(theta)
        for k, name in enumerate(self.names):
            self.register_buffer(f"theta{k}", theta[name].detach().clone())
            self.register_buffer(f"fisher{k}", fisher[name].detach().clone())

    def penalty(self, now: dict[str, Tensor]) -> Tensor:
        """1/2 sum_k F_k (theta_k - theta*_k)^2 over the weights that existed then."""
        parts = []
        for k, name in enumerate(self.names):
            old = getattr(self, f"theta{k}")
            known = now[name][tuple(slice(0, n) for n in old.shape)]
            parts.append((getattr(self, f"fisher{k}") * (known - old) ** 2).sum())
        return 0.5 * torch.stack(parts).sum()

    def absorb(self, older: Anchor, gamma: float) -> None:
        """F <- gamma F_older + F."""
        for k, name in enumerate(self.names):
            if name in older.names:
                old = getattr(older, f"fisher{older.names.index(name)}")
                getattr(self, f"fisher{k}")[tuple(slice(0, n) for n in old.shape)] += gamma * old

"""CODA-Prompt (Smith et al., CVPR 2023, arXiv 2211.13218, github.com/GT-RIPL/CODA-Prompt): a prompt is a weighted sum of
components, and each task adds some."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench import Backbone, Batch, Experience, UserError, attach
from cl_bench.ranges import Amount, Count, Size, Text, Whole

from .._differs import Differs
from ._frozen_trunk import planned, truncated_cosine
from ._prompts import PrefixSlot, Prompted

__all__ = ["CODAPrompt"]


class CODAPrompt(Prompted):
    """``p = sum_m cos(q * A_m, K_m) P_m`` per layer, half of p as keys and half as values of a prefix.

    q is the frozen, unprompted feature. Each experience gets ``pool // tasks`` components, started orthogonal to all
    earlier ones (Gram-Schmidt, unit norm); earlier ones are frozen and still take part. Adam (betas 0.9 and 0.999, no decay)
    at the released truncated cosine, which stays at full rate for two epochs (``variant=paper``: for one). Loss:
    cross-entropy among the current classes, plus ``mu`` times the mean squares of ``Z Z^T - I`` for Z = K, A, P (published
    code: 0, because the start replaces it). Where more rows than dimensions make orthogonality impossible, the row is kept
    as drawn.

    Args:
        pool, length: components over all experiences, and tokens in each (half keys, half values).
        tasks: how many experiences there will be; 0 = as many as the scenario has (10 where nothing says it).
        at: anchored pattern of the prompted attention layers (published: blocks 0-4).

    Raises:
        UserError: if the pool does not divide, is too small, or is used up.
    """

    family: ClassVar[str] = "prompt"
    paper: ClassVar[str] = "Smith et al., CODA-Prompt, CVPR 2023"
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("The paper weighs the orthogonality loss by 0.1; the released runs by 0, its start being "
                "orthogonal.",
                "GT-RIPL/CODA-Prompt@6417d4f6 experiments/cifar-100.sh:29", table="released code",
                here=({"mu": 0.0}, {"mu": 0.1}), both={"lr": 0.01}),
        Differs("The schedule answers for epoch 0 twice, so the rate stays full for two epochs.",
                "GT-RIPL/CODA-Prompt@6417d4f6 utils/schedulers.py:42", table="released code",
                here=({"variant": "released"}, {"variant": "paper"}), both={"lr": 0.01}),
        Differs("The released loader leaves out the last, smaller batch of every epoch; here every image is seen.",
                "GT-RIPL/CODA-Prompt@6417d4f6 trainer.py:185", table="released code"),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-3,
        epochs: Whole = 20,
        batch_size: Count = 128,
        pool: Size = 100,
        length: Size = 8,
        tasks: Whole = 0,
        mu: Amount = 0.0,
        variant: Literal["released", "paper"] = "released",
        at: Text = r"blocks\.[0-4]\.attn",
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        if (tasks and pool % tasks) or length % 2:
            raise UserError(f"pool={pool} must be a multiple of tasks={tasks}, and length={length} even.")
        self.pool, self.length, self.tasks, self.mu, self.variant, self.at = pool, length, tasks, mu, variant, at
        self.adapters = attach(backbone, PrefixSlot, at)
        self.width = backbone.num_features
        self.planned = tasks or 10
        # One entry per experience, each (layers, components, ...).
        self.P, self.K, self.A = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()

    def plan(self, experiences: int) -> None:
        self.planned = planned(self.tasks, experiences)
        if self.pool < self.planned:
            raise UserError(f"pool={self.pool} is too small for {self.planned} experiences; give a larger pool.")

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        if len(self.P) == self.planned:
            raise UserError(f"all {self.planned} parts of the pool are used; build the method with more tasks.")
        layers, n = len(self.adapters.sites), self.pool // self.planned
        for parts, shape in ((self.P, (self.length, self.width)), (self.K, (self.width,)), (self.A, (self.width,))):
            old = torch.cat(list(parts), 1).detach().flatten(2) if len(parts) else None
            rows = [orthonormal(n, math.prod(shape), None if old is None else old[k]) for k in range(layers)]
            parts.requires_grad_(False)
            parts.append(nn.Parameter(torch.stack(rows).reshape(layers, n, *shape).to(self.device, self.dtype)))

    def prefixes(self, q: Tensor) -> list[Tensor]:
        """Per layer the keys and values (2, B, length / 2, d) for queries (B, d)."""
        P, K, A = (torch.cat(list(parts), 1) for parts in (self.P, self.K, self.A))
        found = []
        for p, k, a in zip(P, K, A, strict=True):
            weight = F.cosine_similarity(q.unsqueeze(1) * a, k.unsqueeze(0), dim=2)  # (B, M)
            prompt = torch.einsum("bm,mld->bld", weight, p)
            found.append(torch.stack(prompt.chunk(2, dim=1)))
        return found

    def forward(self, x: Tensor) -> Tensor:
        with self.lent(self.adapters, self.prefixes(self.query(x))):
            return self.head(self.backbone.forward_features(x))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(self(batch.x), batch.y, among=self.current)
        return loss + self.mu * self.correlation() if self.mu else loss

    def correlation(self) -> Tensor:
        """Mean over layers and entries of ``(Z Z^T - I)^2``, summed over K, A and P."""
        total = self.K[0].new_zeros(())
        for parts in (self.K, self.A, self.P):
            z = torch.cat(list(parts), 1).flatten(2)
            eye = torch.eye(z.shape[1], device=z.device, dtype=z.dtype)
            total = total + (z @ z.transpose(1, 2) - eye).square().mean((1, 2)).sum()
        return total

    def configure_optimizers(self) -> Any:
        return truncated_cosine(torch.optim.Adam(self.trained(), lr=self.lr), self.epochs, self.variant == "released")


def orthonormal(n: int, width: int, old: Tensor | None) -> Tensor:
    """``n`` unit rows (n, width), each with its projections on the ``old`` rows and on the rows before it taken out."""
    rows: list[Tensor] = [] if old is None else list(old.double().cpu())
    start = len(rows)
    for _ in range(n):
        drawn = torch.randn(width, dtype=torch.float64)
        row = drawn.clone()
        for other in rows:
            row -= (row @ other) / (other @ other).clamp(min=1e-30) * other
        rows.append(row / row.norm() if row.norm() > 1e-6 * drawn.norm() else drawn / drawn.norm())
    return torch.stack(rows[start:])

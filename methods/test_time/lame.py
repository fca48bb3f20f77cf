"""LAME: leave the model alone and correct a batch's predictions so that neighbours in feature space agree."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench import Backbone, UserError
from cl_bench.adaptation import Learning, TestTimeMethod
from cl_bench.ranges import Amount, Count

__all__ = ["LAME"]


class LAME(TestTimeMethod):
    """Laplacian-regularised maximum likelihood over each batch's predictions; nothing is trained or kept.

    Boudiaf et al., "Parameter-free Online Test-time Adaptation", CVPR 2022 (fiveai/LAME). Made for correlated streams:
    on shuffled ones it pulls whole batches to one class. Norm layers keep their source statistics; works with any.

    Args:
        affinity: ``rbf`` = exp(-d^2 / (2 sigma^2)) with sigma the mean distance to the ``neighbours``-th nearest (the
            image itself counted), ``knn`` = 1 for the nearest (itself not counted), ``linear`` = cosine.
        neighbours: k. 5 in the official configs; other k change results a lot.
        weight: lambda of the pairwise term; 0 returns the model's own probabilities.
        symmetric: average the affinity with its transpose (an option of the code, off by default).
        steps: most updates of the assignment; it stops when the energy changes by less than 1e-8 of itself.
    """

    adapts: ClassVar[bool] = False
    output: ClassVar[Literal["logits", "logit_sum", "scaled_logits", "probs"]] = "probs"
    paper: ClassVar[str] = "Boudiaf et al., CVPR 2022"

    def __init__(
        self,
        backbone: Backbone,
        *,
        affinity: Literal["rbf", "knn", "linear"] = "rbf",
        neighbours: Count = 5,
        weight: Amount = 1.0,
        symmetric: bool = False,
        steps: Count = 100,
        **learning: Learning,
    ) -> None:
        super().__init__(backbone, **learning)
        if affinity not in ("rbf", "knn", "linear"):
            raise UserError(f"affinity {affinity!r} is not known; use rbf, knn or linear.")
        self.affinity, self.neighbours, self.weight = affinity, neighbours, weight
        self.symmetric, self.steps = symmetric, steps

    @torch.no_grad()
    def adapt(self, x: Tensor) -> Tensor:
        return self.outputs(x)

    def outputs(self, x: Tensor) -> Tensor:
        features = self.model.features(x)
        unary = -torch.log(self.model.classify(features).softmax(1) + 1e-10)
        kernel = self.kernel(F.normalize(features, dim=1)).to(unary)
        if self.symmetric:
            kernel = (kernel + kernel.T) / 2
        return self.assign(unary, self.weight * kernel)

    def kernel(self, f: Tensor) -> Tensor:
        """Affinities (N, N) of unit features (N, d)."""
        if self.affinity == "linear":
            return f @ f.T
        # the fast form of cdist loses the small distances that sigma and the neighbours depend on
        f = f.to(torch.promote_types(f.dtype, torch.float32))  # there is none in half precision
        distance = torch.cdist(f, f, compute_mode="donot_use_mm_for_euclid_dist")
        if self.affinity == "knn":
            nearest = distance.topk(min(self.neighbours + 1, len(f)), largest=False).indices[:, 1:]
            return torch.zeros_like(distance).scatter_(1, nearest, 1.0)
        sigma = distance.topk(min(self.neighbours, len(f)), largest=False).values[:, -1].mean()
        return torch.exp(-distance.square() / (2 * sigma.square().clamp_min(torch.finfo(sigma.dtype).tiny)))

    def assign(self, unary: Tensor, kernel: Tensor) -> Tensor:
        """Probabilities (N, C) that minimise the regularised energy, by its concave-convex bound."""
        y = (-unary).softmax(1)
        before = torch.inf
        for step in range(self.steps):
            pairwise = kernel @ y
            y = (pairwise - unary).softmax(1)
            energy = float((unary * y - pairwise * y + y * y.clamp_min(1e-20).log()).sum())
            if step > 1 and abs(energy - before) <= 1e-8 * abs(before):
                break
            before = energy
        return y

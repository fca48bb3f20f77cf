"""RAIL: ridge regression on frozen image features, trusted only where the zero-shot answer is a learned class."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench import Backbone, Experience, LabelSpace, batches
from cl_bench.heads import columns_of
from cl_bench.ranges import Count, Positive, Share, Whole

from ._clip import Clip

__all__ = ["Rail"]


class Rail(Clip):
    """Recursive ridge regression on unit image features, fused with zero-shot CLIP; nothing of CLIP is trained.

    Xu et al., "Advancing Cross-domain Discriminability in Continual Learning of Vision-Language Models", NeurIPS 2024
    (linghan1997/Regression-based-Analytic-Incremental-Learning). ``primal``: a random expansion with ReLU and the inverse
    of its regularised second moment, updated batch by batch in double precision; exactly joint ridge regression, no image is
    kept. ``dual``:
    kernel ridge regression with a Gaussian kernel, solved anew on the features of all images seen, which are kept.
    An image whose zero-shot answer is no learned class keeps it: Transfer is zero-shot's. Else
    ``0.8 ridge + 0.2 softmax(zero-shot)``, the ridge's answers as they are (no softmax). Returned is the logarithm.

    The inverse is held as ``(1 - U U') / ridge``, where U has a column per image seen, for as long as that is smaller than
    the matrix. Deviation: the released zero-shot head has the one template "a photo of a {}."; here it is the space's.

    Args:
        form: ``primal`` or ``dual``.
        hidden: width of the expansion; 0 = features as they are.
        ridge: None = as published, 0.1 (primal) and 0.001 (dual).
        gamma: of the kernel.
        fusion: weight of the ridge's answer.
    """

    paper: ClassVar[str] = "Xu et al. (RAIL), NeurIPS 2024"
    exempt: ClassVar[dict[str, str]] = {
        "state that grows with the images is declared": "factors of the inverse take its place while they are smaller than it; "
        "the dual form keeps features, as published"
    }

    def __init__(self, backbone: Backbone, *, form: Literal["primal", "dual"] = "primal", batch_size: Count = 128,
                 hidden: Whole = 15000, ridge: Positive | None = None, gamma: Positive = 0.1,
                 fusion: Share = 0.8) -> None:  # fmt: skip
        super().__init__(backbone, lr=0.0, batch_size=batch_size, iterations=1)
        self.form, self.hidden, self.gamma, self.fusion, self.ridge = form, hidden, gamma, fusion, ridge
        self.strength = ridge or (0.1 if form == "primal" else 0.001)
        self.backbone.requires_grad_(False)
        self.expansion = torch.zeros(0, 0)
        self.factor = torch.zeros(0, 0)  # U (h, n), or the whole inverse (h, h) once that is smaller
        self.weight = torch.zeros(0, 0)  # (h, classes learned)
        self.kept = torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64)

    def epochs_for(self, exp: Experience) -> int:
        return 0

    @torch.no_grad()
    def end(self, exp: Experience) -> None:
        if not self.expansion.numel() and self.hidden and self.form == "primal":
            width = self.backbone.num_features
            bound = width**-0.5  # as nn.Linear draws it; never trained
            drawn = torch.empty(self.hidden, width).uniform_(-bound, bound, generator=self.rng.on("cpu"))
            self.expansion = drawn.to(self.device)
        draw = self.rng.on("cpu")
        for b in batches(exp.data, self.batch_size, shuffle=True, generator=draw, device=self.device):
            self.learn(self.backbone.forward_features(b.x), columns_of(b.y, self.seen), len(self.seen))

    # ------------------------------------------------------------------ the regression
    def expand(self, features: Tensor) -> Tensor:
        """Unit features, expanded where there is an expansion (n, h)."""
        x = F.normalize(features.double(), dim=-1)  # the inverse of a moment with so small a ridge wants it
        return torch.relu(x @ self.expansion.T.to(x)) if self.expansion.numel() else x

    @torch.no_grad()
    def learn(self, features: Tensor, y: Tensor, classes: int) -> None:
        """One batch: raw features (n, d) and columns (n,) among ``classes`` learned so far."""
        x = self.expand(features)
        if self.form == "dual":
            old, labels = self.kept
            self.kept = torch.cat([old.to(x).reshape(-1, x.shape[1]), x]), torch.cat([labels.to(y), y])
            self.weight = torch.zeros(0, 0)
            return
        h = x.shape[1]
        weight = x.new_zeros(h, classes)
        weight[:, : self.weight.shape[1]] = self.weight.to(x) if self.weight.numel() else 0.0
        rx = self._inverse_times(x.T)
        root = torch.linalg.cholesky(torch.eye(len(x)).to(x) + x @ rx)
        self._subtract(torch.linalg.solve_triangular(root, rx.T, upper=False).T)
        self.weight = weight + self._inverse_times(x.T) @ (F.one_hot(y, classes).to(x) - x @ weight)

    def _inverse_times(self, v: Tensor) -> Tensor:
        u = self.factor.to(v)
        if self._dense:
            return u @ v
        return (v - u @ (u.T @ v)) / self.strength if u.numel() else v / self.strength

    @property
    def _dense(self) -> bool:
        return self.factor.numel() > 0 and self.factor.shape[0] == self.factor.shape[1]

    def _subtract(self, root: Tensor) -> None:
        """The inverse minus ``root root'``."""
        h, u = len(root), self.factor.to(root)
        if self._dense:
            self.factor = u - root @ root.T
            return
        u = torch.cat([u.reshape(h, -1), root * self.strength**0.5], 1)
        self.factor = u if u.shape[1] < h else (torch.eye(h).to(u) - u @ u.T) / self.strength

    @torch.no_grad()
    def regress(self, features: Tensor) -> Tensor:
        """The ridge's answers (n, classes learned)."""
        x = self.expand(features)
        if self.form == "primal":
            return x @ self.weight.to(x)
        points, labels = self.kept[0].to(x), self.kept[1]
        if not self.weight.numel():
            target = F.one_hot(labels, int(labels.max()) + 1).to(x)
            kernel = gaussian(points, points, self.gamma)
            self.weight = torch.linalg.solve(kernel + self.strength * torch.eye(len(points)).to(x), target)
        return gaussian(x, points, self.gamma) @ self.weight.to(x)

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        features = self.backbone.forward_features(x)
        zero_shot = self.head.over(features, space).softmax(1)
        if not len(self.seen):
            return zero_shot.clamp_min(1e-30).log()
        learned = [k for k, i in enumerate(space.ids) if i in self.seen.ids]
        ridge = torch.zeros_like(zero_shot)
        ridge[:, learned] = self.regress(features).to(ridge)[:, [self.seen.ids.index(space.ids[k]) for k in learned]]
        return fuse(zero_shot, ridge, learned, self.fusion).clamp_min(1e-30).log()


def gaussian(a: Tensor, b: Tensor, gamma: float) -> Tensor:
    """``exp(-gamma |a - b|^2)`` (n, m)."""
    return torch.exp(-gamma * torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square())


def fuse(zero_shot: Tensor, ridge: Tensor, learned: list[int], weight: float) -> Tensor:
    """Both answers (n, C) where the zero-shot one is among the columns ``learned``, else the zero-shot one alone."""
    inside = torch.isin(zero_shot.argmax(1), torch.tensor(learned, device=zero_shot.device))
    return torch.where(inside[:, None], (1 - weight) * zero_shot + weight * ridge, zero_shot)

"""ECALP: labels are propagated over a growing graph of class texts and test images."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench import Backbone
from cl_bench.ranges import Amount, Count, Positive, Share, Size

from ._views import Views

__all__ = ["Ecalp"]


class Ecalp(Views):
    """Class texts and all images so far are nodes; an image's answer is what reaches it from the texts in a few steps.

    Li et al., "Efficient and Context-Aware Label Propagation for Zero-/Few-Shot Training-Free Adaptation of Vision-Language
    Model", ICLR 2025 (Yushu-Li/ECALP). Online. Each image is joined to its most similar images (channels weighted by the
    variance over class texts) and texts, edges weigh similarity to a power, the graph is normalised and labels flow over it
    from the texts; a fifth of what an earlier image was taken for is where it starts from. As released, the newest image
    stands twice in the graph, and the channel weights are on the earlier image of a pair. Equal similarities are broken by
    place, where the released search leaves it to the library. What is kept grows with the stream.

    Args:
        k_image, k_text: neighbours among images and among texts.
        gamma: power of the similarity.
        alpha: share of what comes from neighbours in each step.
        iterations: steps of propagation.
        sharpness: factor that makes logits of what reaches a class; it moves the calibration and no answer.
    """

    family: ClassVar[str] = "test-time"
    paper: ClassVar[str] = "Li et al. (ECALP), ICLR 2025"

    def __init__(self, backbone: Backbone, *, k_image: Size = 8, k_text: Size = 3, gamma: Positive = 10.0,
                 alpha: Share = 1.0, iterations: Count = 3, sharpness: Amount = 10_000.0) -> None:  # fmt: skip
        super().__init__(backbone, views=1)
        self.k_image, self.k_text, self.gamma = k_image, k_text, gamma
        self.alpha, self.iterations, self.sharpness = alpha, iterations, sharpness

    def restart_memory(self) -> None:
        empty = torch.zeros(0, 0, dtype=torch.float64)
        self.weighted = empty  # (t, d) images so far, channels weighted
        self.near, self.likeness = empty.long(), empty  # (t + 1, k) image neighbours of each row, the newest image twice
        self.near_text, self.likeness_text = empty.long(), empty
        self.labels = empty  # (t + 1, C) where rows start from

    def score(self, f: Tensor, text: Tensor) -> Tensor:
        return self.sharpness * self.row(f[0].double(), text.double()).to(f)

    def row(self, x: Tensor, text: Tensor) -> Tensor:
        """What reaches one more image x (d,) from the texts (C, d), (C,)."""
        self.join(x, text)
        nodes, classes = len(self.near), len(text)
        start = torch.arange(classes, classes + nodes, device=x.device)
        many = self.near[:, : min(self.k_image, nodes)]
        to = torch.cat([many + classes, self.near_text], 1)
        weight = torch.cat([self.likeness[:, : many.shape[1]], self.likeness_text], 1) ** self.gamma
        a, b, w = start.repeat_interleave(to.shape[1]), to.flatten(), weight.flatten()
        a, b, w = torch.cat([a, b]), torch.cat([b, a]), torch.cat([w, w])  # both directions
        degree = x.new_zeros(classes + nodes).index_add_(0, a, w)
        scale = 1 / (degree.sqrt() + 1e-6)
        w = scale[a] * w * scale[b]
        known = torch.eye(classes).to(x)
        zero = x.new_zeros(2, classes)
        begun = torch.cat([self.labels[:-1].to(x), zero]) if len(self.labels) else zero
        held = begun
        for _ in range(self.iterations):
            flowed = x.new_zeros(classes + nodes, classes).index_add_(0, a, w[:, None] * torch.cat([known, held])[b])
            held = self.alpha * flowed[classes:] + (1 - self.alpha) * begun
        top, best = held.max(1, keepdim=True)
        self.labels = torch.zeros_like(held).scatter_(1, best, top / 5)
        return held[-1]

    def join(self, x: Tensor, text: Tensor) -> None:
        """The image as a node, twice, in the place of the last one's double."""
        channels = F.normalize(text.var(dim=0), dim=0)
        own = F.normalize(x * channels, dim=0)
        old = self.weighted.to(x).reshape(-1, len(x))
        self.weighted = torch.cat([old, own[None]])
        nodes = len(self.weighted) + 1
        k = min(self.k_image, nodes)
        alike = torch.cat([self.weighted, own[None]]) @ x  # (nodes,)
        if not len(old):
            self.likeness, self.near = first(alike.expand(2, -1), torch.arange(2).expand(2, -1).to(x.device), k)
        else:
            before = self.likeness[:-1].clone()
            before[self.near[:-1] == nodes - 2] = -1.0  # the last one's double is no node any more
            rows, fresh = len(before), alike[: nodes - 2, None].expand(-1, 2)
            names = torch.tensor([nodes - 2, nodes - 1], device=x.device).expand(rows, 2)
            most = k + 1 if rows == k + 1 else k + 2 if rows > k else k
            found = first(torch.cat([before, fresh], 1), torch.cat([self.near[:-1], names], 1), most)
            newest = first(alike.expand(2, -1), torch.arange(nodes, device=x.device).expand(2, -1), most)
            self.likeness, self.near = (torch.cat(pair) for pair in zip(found, newest, strict=True))
        classes = torch.arange(len(text), device=x.device).expand(2, -1)
        told = first((text @ x).expand(2, -1), classes, min(self.k_text, len(text)))
        if len(old):
            self.likeness_text = torch.cat([self.likeness_text[:-1], told[0]])
            self.near_text = torch.cat([self.near_text[:-1], told[1]])
        else:
            self.likeness_text, self.near_text = told


def first(likeness: Tensor, names: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest of each row and their names; equal ones (to 1e-12) in the order in which they stand."""
    order = (-likeness * 1e12).round().argsort(dim=1, stable=True)[:, :count]
    return likeness.gather(1, order), names.gather(1, order)

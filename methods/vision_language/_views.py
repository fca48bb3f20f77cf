"""What test-time methods for vision-language models share: views of one image, their entropies, one image at a time."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench import Backbone, Experience, LabelSpace, Rng
from cl_bench.adaptation import TestTimeMethod
from cl_bench.ranges import Amount, Share, Size

from ._augmix import mixed
from ._clip import need_text


class Views(TestTimeMethod):
    """Answers one image at a time from the features of some views of it and the features of class texts.

    The class texts are those of the space that is asked for (its templates, their mean); nothing is learned from
    experiences, so the model is the one that was pretrained. Row 0 of the views is the image; the others are random resized
    crops of it (area ``area`` to 1, aspect 3/4 to 4/3, bilinear) with flips, seeded per run. Where a method has ``augmix``,
    the crops are mixed with mild changes of them, as prompt tuning does on its fine-grained sets and not on ImageNet's.

    Args:
        views: images per image, itself among them.
        area: smallest share of the image in a crop.
        flip: mirror half of the crops; letters and digits do not survive it.
        augmix: mix every crop with chains of mild changes (Hendrycks et al., ICLR 2020).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"names"})

    def __init__(
        self, backbone: Backbone, *, views: Size = 64, area: Share = 0.08, flip: bool = True, augmix: bool = False,
        lr: Amount = 0.0
    ) -> None:  # fmt: skip
        need_text(type(self).__name__, backbone)
        super().__init__(backbone, lr=lr, epochs=0)
        self.views, self.area, self.flip, self.augmix = views, area, flip, augmix
        self.backbone.requires_grad_(False)

    # ------------------------------------------------------------------ what a subclass writes
    def score(self, f: Tensor, text: Tensor) -> Tensor:
        """Unit features (V, d) of one image's views and unit texts (C, d) to an answer (C,) of the kind ``output``."""
        raise NotImplementedError

    def restart_memory(self) -> None:
        """Forget everything about the stream so far."""

    # ------------------------------------------------------------------ given
    def build(self, source: Experience | None) -> None:
        self.restart_memory()

    def narrowed(self) -> None:
        self.restart_memory()

    def _narrow(self, space: LabelSpace) -> None:
        if space.ids != self.model.space.ids or space.names != self.model.space.names:
            self.model.head.grow(space)
            self.model.space = space
            self.narrowed()

    @property
    def scale(self) -> Tensor:
        """Factor of the cosine."""
        return self.model.head.scale  # type: ignore[return-value]

    @property
    def text(self) -> Tensor:
        """Unit features (C, d) of the classes asked for."""
        with torch.no_grad():  # with gradients on, the head would not trust what it has kept and encode them for each image
            return self.model.head.embeddings(self.model.space)  # type: ignore[operator]

    def adapt(self, x: Tensor) -> Tensor:
        return torch.cat([self.score(self.embed(image), self.text.to(image)).detach()[None] for image in x])

    @torch.no_grad()
    def embed(self, image: Tensor) -> Tensor:
        """Unit features (V, d) of the views of one image (3, H, W)."""
        shown = crops(image, self.views, self.rng, self.area, self.flip) if self.views > 1 else image[None]
        if self.augmix and self.views > 1:
            shown = torch.cat([shown[:1], mixed(shown[1:], self.rng)])
        return F.normalize(self.model.features(shown), dim=-1).to(image)

    def plain(self, x: Tensor) -> Tensor:
        """Zero-shot logits (N, C)."""
        return self.scale * F.normalize(self.model.features(x), dim=-1) @ self.text.to(x).T

    def outputs(self, x: Tensor) -> Tensor:
        logits = self.plain(x)
        return logits.softmax(1) if self.output == "probs" else logits


def crops(image: Tensor, views: int, rng: Rng, area: float, flip: bool) -> Tensor:
    """The image (3, H, W) and random resized crops of it (views, 3, H, W)."""
    return torch.cat([image[None], cropped(image.expand(views - 1, -1, -1, -1), rng, area, flip)])


def cropped(x: Tensor, rng: Rng, area: float, flip: bool) -> Tensor:
    """A random resized crop of each image (N, 3, H, W), at its own size."""
    u = torch.rand(len(x), 5, generator=rng.on("cpu"))
    share = area + (1 - area) * u[:, 0]
    ratio = torch.exp((2 * u[:, 1] - 1) * math.log(4 / 3))
    across, up = (share * ratio).sqrt().clamp(max=1), (share / ratio).sqrt().clamp(max=1)
    mirror = torch.where(u[:, 4] < 0.5, -1.0, 1.0) if flip else torch.ones(len(x))
    zero = torch.zeros(len(x))
    theta = torch.stack([
        torch.stack([across * mirror, zero, (2 * u[:, 2] - 1) * (1 - across)], 1),
        torch.stack([zero, up, (2 * u[:, 3] - 1) * (1 - up)], 1),
    ], 1).to(x)  # fmt: skip
    with torch.autocast(x.device.type, enabled=False):
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def entropies(logits: Tensor) -> Tensor:
    """Entropy in nats of each row's softmax."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def confident(values: Tensor, share: float) -> Tensor:
    """The ``int(V share)`` rows of lowest entropy (V,), the lowest first; at least one."""
    return values.argsort(stable=True)[: max(1, int(len(values) * share))]


def marginal_entropy(logits: Tensor) -> Tensor:
    """Entropy of the mean over rows (V, C) of their softmax."""
    log_p = logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))
    return -(log_p.exp() * log_p).sum()

"""MoE-Adapters: a pool of bottlenecks in both towers, a router for each experience, and a choice of router for each image."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench import AdapterSet, Backbone, Batch, Experience, LabelSpace, attach, batches
from cl_bench.ranges import Amount, Count, Positive, Share, Size, Whole

from ._clip import Clip, contrast, scaled_cosines
from ._experts import Autoencoder, Experts

__all__ = ["MoeAdapters"]

BLOCKS = r"(.*\.)?(resblocks|blocks|layer)\.\d+"


class MoeAdapters(Clip):
    """In every block of both towers a router of the experience at hand chooses two of 22 bottlenecks for each sequence; the two
    chosen most are frozen when it ends. An image goes through the router of the experience it looks like, or through none.

    Yu et al., "Boosting Continual Learning of Vision-Language Models via Mixture-of-Experts Adapters", CVPR 2024
    (JiazuoYu/MoE-Adapters4CL): AdamW 1e-3 without decay, warm-up of 100 steps and cosine, 1,000 steps of 64, label
    smoothing 0.2. The published rates differ by data set (1e-4 to 5e-3). The load-balancing loss is computed in the
    released code and never used; here it is not computed.

    Deviations: an image's experience is told by an autoencoder per experience, as published, which reads the frozen image
    tower's features before projection in the place of AlexNet's. Their errors have another scale than AlexNet's, so the
    plain model answers where the least error is over ``threshold`` times that of the experience's own images (published: an
    error of 0.0655). Each image is asked by itself; released, the mean over a batch, which comes from one data set.

    Args:
        experts, bottleneck, top: in each block, their width, and how many are chosen.
        code, code_steps: width and training steps of an autoencoder.
        threshold: see above.
        smoothing: of the labels.
    """

    paper: ClassVar[str] = "Yu et al. (MoE-Adapters), CVPR 2024"

    def __init__(self, backbone: Backbone, *, lr: Amount = 1e-3, epochs: Whole = 0, batch_size: Count = 64,
                 iterations: Count = 1000, experts: Size = 22, bottleneck: Size = 64, top: Size = 2, code: Size = 100,
                 code_steps: Count = 300, threshold: Positive = 2.0, smoothing: Share = 0.2) -> None:  # fmt: skip
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size, iterations=iterations)
        self.experts, self.bottleneck, self.top, self.smoothing = experts, bottleneck, top, smoothing
        self.code, self.code_steps, self.threshold = code, code_steps, threshold
        self.backbone.requires_grad_(False)
        settings = {"experts": experts, "r": bottleneck, "top": top}
        towers = (self.backbone.model, self.backbone.language)
        self.sides = nn.ModuleList(attach(tower, Experts, BLOCKS, **settings) for tower in towers)
        self.coders = nn.ModuleList()
        self.usual: list[float] = []  # mean error of each experience's own images

    def mixtures(self) -> list[Experts]:
        """All mixtures of both towers."""
        return [a for s in self.sides if isinstance(s, AdapterSet) for _, a in s.each() if isinstance(a, Experts)]

    def route(self, router: int, learning: bool = False) -> None:
        """Send everything through one router; -1: the plain model."""
        for m in self.mixtures():
            m.router, m.learning = router, learning

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        for m in self.mixtures():
            m.gates.requires_grad_(False)
            m.noise.requires_grad_(False)
            m.grow(next(self.backbone.parameters()))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.route(len(self.coders), learning=True)
        text, images = F.normalize(self.texts(self.current, 0), dim=-1), self.images(batch.x)
        self.route(-1)
        return contrast(images, text, batch.y, self.current, self.backbone.logit_scale, self.smoothing)

    def texts(self, space: LabelSpace, template: int) -> Tensor:
        """Features (C, d) of the names in one template by the router in use, not normalised."""
        sentence = (space.templates or self.head.templates)[template]
        return self.backbone.encode_tokens(self.backbone.tokenize([sentence.format(n.replace("_", " ")) for n in space.names]))

    def configure_optimizers(self) -> Any:
        return self.warm_cosine([p for s in self.sides for p in s.parameters() if p.requires_grad])

    @torch.no_grad()
    def end(self, exp: Experience) -> None:
        self.route(-1)
        for m in self.mixtures():
            m.freeze_used()
        features = torch.cat([self.backbone.pooled_features(b.x) for b in batches(exp.data, 256, device=self.device)])
        coder = Autoencoder(features.shape[1], self.code).to(features)
        coder.learn(features, self.code_steps, self.batch_size, self.rng.on("cpu"))
        self.coders.append(coder.requires_grad_(False))
        self.usual.append(float(coder.errors(features).mean()))

    # ------------------------------------------------------------------ answering
    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        if not len(self.coders):
            return super().predict(x, space)
        of = self.routers(self.backbone.pooled_features(x))
        out = x.new_zeros(len(x), len(space))
        for router in of.unique().tolist():
            rows = of == router
            self.route(router)
            out[rows] = scaled_cosines(self.images(x[rows]), self.told(space, router), self.backbone.logit_scale).to(out)
        self.route(-1)
        return out

    def routers(self, features: Tensor) -> Tensor:
        """The router for each image (N,), -1 for none."""
        errors = torch.stack([c.errors(features) for c in self.coders])  # type: ignore[operator]
        least, at = errors.min(0)
        known = least <= self.threshold * torch.tensor(self.usual).to(least)[at]
        return torch.where(known, at, -1)

    def told(self, space: LabelSpace, router: int) -> Tensor:
        """Unit text features (C, d) by the router in use, the mean over the space's templates; kept until weights change."""
        kept = self.__dict__.setdefault("kept_texts", {})
        key = (space.names, space.templates, router, self.backbone.text_version())
        if key not in kept:
            if any(k[3] != key[3] for k in kept):
                kept.clear()
            with torch.no_grad():
                count = len(space.templates or self.head.templates)
                each = [F.normalize(self.texts(space, k), dim=-1) for k in range(count)]
                kept[key] = F.normalize(torch.stack(each).mean(0), dim=-1)
        return kept[key]

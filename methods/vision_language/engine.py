"""ENGINE: linear maps on either frozen feature, a Gaussian classifier beside them, and phrases that tell classes apart."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench import Backbone, Batch, Experience, LabelSpace, batches
from cl_bench.heads import columns_of
from cl_bench.ranges import Amount, Count, Share, Size, Whole

from ._clip import Clip
from ._fusion import summed
from ._gaussian import gaussian_of, gaussian_scores, merged, own
from ._phrases import phrases_of, read_phrases

__all__ = ["Engine"]


class Engine(Clip):
    """Sums of linear maps are trained by contrast with texts, noisy images and phrases; a shared-covariance Gaussian on the
    features before projection and a second look at the best classes correct the answer.

    Zhou et al., "External Knowledge Injection for CLIP-Based Class-Incremental Learning", ICCV 2025 (LAMDA-CL/ICCV25-ENGINE),
    with the settings for CIFAR-100: SGD 0.05 with momentum 0.9 and decay 0.05, a cosine stepped per epoch, 10 epochs,
    batches of 64; each old class joins a batch with its noisy mean. As released, the contrast is scaled by the stored
    logarithm of CLIP's scale, and inverse covariances are averaged.

    The knowledge is the user's file ``phrases``: for a class, phrases that tell it from other classes (or a plain list).
    Without one the text term and the second look are left out. Deviations: noise is put on images in [0, 1]; released, on
    normalised pixels that are then cut at 0. The second look takes all phrases in the place of random ones. A class without
    statistics has the lowest Gaussian score of the row.

    Args:
        phrases: JSON file; "" = none.
        on_text, on_image: weights of the contrast with phrases and with noisy images.
        gaussian, rerank: share of the Gaussian's score, and of the second look in the rest.
        noise: on an old class's mean.
        top: classes looked at again.
    """

    paper: ClassVar[str] = "Zhou et al. (ENGINE), ICCV 2025"

    def __init__(self, backbone: Backbone, *, lr: Amount = 0.05, epochs: Whole = 10, batch_size: Count = 64,
                 iterations: Count = 1000, weight_decay: Share = 0.05, phrases: str = "", on_text: Amount = 2.0,
                 on_image: Amount = 0.5, gaussian: Share = 0.8, rerank: Share = 0.5, noise: Amount = 0.25,
                 top: Size = 5) -> None:  # fmt: skip
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size, iterations=iterations)
        self.weight_decay, self.phrases, self.on_text, self.on_image = weight_decay, phrases, on_text, on_image
        self.gaussian, self.rerank, self.noise, self.top = gaussian, rerank, noise, top
        self.told = read_phrases(phrases) if phrases else {}
        self.backbone.requires_grad_(False)
        self.of_image, self.of_text = nn.ModuleList(), nn.ModuleList()
        self.means: dict[int, Tensor] = {}  # raw features, for replay
        self.centres, self.inverse = torch.zeros(0, 0), torch.zeros(0, 0)  # (C, h) and (h, h), rows as `fitted`
        self.fitted: list[int] = []

    @torch.no_grad()
    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        width = self.backbone.num_features
        for maps in (self.of_image, self.of_text):
            maps.requires_grad_(False)
            maps.append(nn.Linear(width, width).to(self.device))
        parts = [(self.backbone.pooled_features(b.x), self.backbone.forward_features(b.x), b.y)
                 for b in batches(exp.data, 256, device=self.device)]  # fmt: skip
        h, z, y = (torch.cat(p) for p in zip(*parts, strict=True))
        self.replayed = list(self.means)
        new = [i for i in exp.space.ids if i not in self.fitted and bool((y == i).any())]
        self.means |= {i: z[y == i].mean(0) for i in new}
        if new:
            mu, inverse = gaussian_of(F.normalize(h, dim=-1), y, new)
            self.inverse = merged(self.centres, self.inverse, mu, inverse) if self.fitted else inverse
            self.centres, self.fitted = torch.cat([self.centres.to(mu).reshape(-1, mu.shape[1]), mu]), [*self.fitted, *new]
        self.raw = self.raw_texts(self.seen)
        each = phrases_of(self.told, self.seen.names, self.phrases) if self.told else []
        self.known = [F.normalize(self.encoded([f"{n} with {p.lower()}" for p in told]), dim=-1)
                      for n, told in zip(self.seen.names, each, strict=False)]  # fmt: skip

    def encoded(self, texts: list[str]) -> Tensor:
        """Features (N, d) of sentences, not normalised."""
        return self.backbone.encode_tokens(self.backbone.tokenize(texts))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        draw = self.rng.on("cpu")
        with torch.no_grad():
            z = self.backbone.forward_features(batch.x)
            shaken = (batch.x + 0.25 * torch.randn(batch.x.shape, generator=draw).to(batch.x)).clamp(0, 1)
            noisy = F.normalize(self.backbone.forward_features(shaken), dim=-1) if self.on_image else z
        y, count = batch.y, len(z)
        if self.replayed:
            old = torch.stack([self.means[i] for i in self.replayed]).to(z)
            old = old + self.noise * torch.randn(old.shape, generator=draw).to(z)
            z, y = torch.cat([z, old]), torch.cat([y, torch.tensor(self.replayed, device=y.device)])
        at = columns_of(y, self.seen)
        v = F.normalize(summed(self.of_image, z), dim=-1)
        w = F.normalize(summed(self.of_text, self.raw), dim=-1)[at]
        logits = self.backbone.language.logit_scale * v @ w.T  # type: ignore[operator]
        loss = (own(logits) + own(logits.T)) / 2
        if self.known:
            rows = [int(torch.randint(len(self.known[c]), (), generator=draw)) for c in at.tolist()]
            told = torch.stack([self.known[c][k] for c, k in zip(at.tolist(), rows, strict=True)])
            loss = loss + self.on_text * own(w @ told.to(w).T)
        return loss + self.on_image * own(v[:count] @ noisy.T) if self.on_image else loss

    def configure_optimizers(self) -> Any:
        trained = [p for p in (*self.of_image.parameters(), *self.of_text.parameters()) if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        passes = int(self.trainer.max_epochs or 1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, passes), eta_min=min(1e-8, self.lr))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    # ------------------------------------------------------------------ answering
    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        if not len(self.of_image):
            return super().predict(x, space)
        z = self.backbone.forward_features(x)
        each = [self.raw_texts(space, k) for k in range(len(space.templates or self.head.templates))]
        w = F.normalize(torch.stack([F.normalize(summed(self.of_text, t), dim=-1) for t in each]).mean(0), dim=-1)
        near = F.normalize(summed(self.of_image, z), dim=-1) @ w.T
        rest = near
        if self.told and set(space.names) <= set(self.told):
            rest = self.rerank * self.again(near, F.normalize(z, dim=-1), space) + (1 - self.rerank) * near
        known = [k for k, i in enumerate(space.ids) if i in self.fitted]
        if not known:
            return rest
        scores = gaussian_scores(F.normalize(self.backbone.pooled_features(x), dim=-1), self.centres.to(z), self.inverse.to(z))
        out = scores.amin(1, keepdim=True).expand(-1, len(space)).clone()
        out[:, known] = scores[:, [self.fitted.index(space.ids[k]) for k in known]]
        return self.gaussian * out + (1 - self.gaussian) * rest

    def again(self, near: Tensor, unit: Tensor, space: LabelSpace) -> Tensor:
        """For the best classes of each row, the likeness (N, C) to phrases that tell them from each other; 0 for the rest."""
        out, top = torch.zeros_like(near), near.topk(min(self.top, near.shape[1]), 1).indices
        for row, best in enumerate(top.tolist()):
            for c in best:
                by = self.told[space.names[c]]
                told = [p for d in best if d != c for p in by.get(space.names[d], by.get("", []))]
                told = told or [p for some in by.values() for p in some]
                text = self.encoded([f"{space.names[c]} with {p.lower()}" for p in told]).mean(0)
                out[row, c] = unit[row] @ F.normalize(text, dim=0)
        return out

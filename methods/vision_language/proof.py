"""PROOF: a linear map per experience on either frozen feature, and one attention that mixes image, texts and prototypes."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from cl_bench import Backbone, Batch, Experience, LabelSpace, TensorData
from cl_bench.heads import columns_of
from cl_bench.ranges import Amount, Count, Share, Size, Whole

from ._clip import Clip
from ._fusion import Fusion, herded, proof_loss, summed

__all__ = ["Proof"]


class Proof(Clip):
    """Sums of linear maps project images and class texts; three scores are added: image by text as projected, image by text
    and image by prototype after the attention.

    Zhou et al., "Learning without Forgetting for Vision-Language Models", TPAMI 2025, arXiv 2305.19270 (zhoudw-zdw/PROOF):
    SGD 1e-3 with momentum 0.9 and decay 0.05, a cosine stepped per epoch, 10 epochs, batches of 64, 20 herded images of
    each class. As released, maps of texts go on being trained, those of images are frozen, and images are of unit length in
    training alone. Towers are frozen and nothing is augmented, so features stand for images, exemplars too.

    Deviations: the released code averages texts and prototypes after the attention over the batch, so that an answer
    depends on its neighbours; here each image has its own unless ``per_image`` is off. A class that was never learned has
    its text in the prototype's place.

    Args:
        exemplars: of each class.
        context: learned vectors per experience in the attention's sequence.
        per_image: whether texts and prototypes after the attention are an image's own when it is answered.
    """

    paper: ClassVar[str] = "Zhou et al. (PROOF), TPAMI 2025"

    def __init__(self, backbone: Backbone, *, lr: Amount = 1e-3, epochs: Whole = 10, batch_size: Count = 64,
                 iterations: Count = 1000, weight_decay: Share = 0.05, exemplars: Whole = 20, context: Size = 3,
                 per_image: bool = True) -> None:  # fmt: skip
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size, iterations=iterations)
        self.weight_decay, self.exemplars, self.context, self.per_image = weight_decay, exemplars, context, per_image
        self.backbone.requires_grad_(False)
        self.of_image, self.of_text, self.contexts = nn.ModuleList(), nn.ModuleList(), nn.ParameterList()
        self.fusion = Fusion(backbone.num_features)
        self.log_scale = nn.Parameter(self.backbone.language.logit_scale.detach().clone())  # type: ignore[union-attr, operator]
        self.means: dict[int, Tensor] = {}
        self.held: dict[int, Tensor] = {}  # features of exemplars by class

    def stored_samples(self) -> int:
        return sum(map(len, self.held.values()))

    # ------------------------------------------------------------------ learning
    def training_data(self, exp: Experience) -> Dataset:
        data = self.features_once(exp)
        old = [(f.to(data.x), i) for i, f in self.held.items()]
        labels = [torch.full((len(f),), i, dtype=data.y.dtype, device=data.y.device) for f, i in old]
        return TensorData(torch.cat([data.x, *(f for f, _ in old)]), torch.cat([data.y, *labels]))

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        width = self.backbone.num_features
        self.of_image.requires_grad_(False)
        self.contexts.requires_grad_(False)
        self.of_image.append(nn.Linear(width, width).to(self.device))
        self.of_text.append(nn.Linear(width, width).to(self.device))
        self.contexts.append(nn.Parameter(torch.randn(self.context, width, device=self.device)))
        data = self.features_once(exp)
        self.means |= {i: F.normalize(data.x[data.y == i], dim=-1).mean(0) for i in exp.space.ids if bool((data.y == i).any())}
        self.raw = self.raw_texts(self.seen)

    def mixed(self, v: Tensor, w: Tensor, space: LabelSpace) -> tuple[Tensor, Tensor, Tensor]:
        """Images (N, d), texts and prototypes (N, C, d) after the attention."""
        known = [k for k, i in enumerate(space.ids) if i in self.means]
        p = w.clone()
        if known:
            means = torch.stack([self.means[space.ids[k]] for k in known]).to(w)
            p[known] = F.normalize(summed(self.of_image, means), dim=-1)
        rest = torch.cat([w, p, *self.contexts]).expand(len(v), -1, -1)
        out, count = self.fusion(torch.cat([v[:, None], rest], 1)), len(w)
        return out[:, 0], out[:, 1 : 1 + count], out[:, 1 + count : 1 + 2 * count]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        v = F.normalize(summed(self.of_image, batch.x), dim=-1)
        w = F.normalize(summed(self.of_text, self.raw), dim=-1)
        image, text, prototype = self.mixed(v, w, self.seen)
        y = columns_of(batch.y, self.seen)
        return proof_loss(image, text.mean(0), prototype.mean(0), v, w, y, self.log_scale.exp())

    def configure_optimizers(self) -> Any:
        own = [p for p in (*self.of_image.parameters(), *self.of_text.parameters(), *self.contexts, *self.fusion.parameters(),
                           self.log_scale) if p.requires_grad]  # fmt: skip
        optimizer = torch.optim.SGD(own, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        passes = int(self.trainer.max_epochs or 1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, passes), eta_min=min(1e-8, self.lr))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def end(self, exp: Experience) -> None:
        data = self.features_once(exp)
        for i in exp.space.ids:
            if self.exemplars and len(f := data.x[data.y == i]):
                self.held[i] = f[herded(F.normalize(f, dim=-1), self.exemplars)]

    # ------------------------------------------------------------------ answering
    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        if not len(self.of_image):
            return super().predict(x, space)
        v = summed(self.of_image, self.backbone.forward_features(x))  # not of unit length, as released
        count = len(space.templates or self.head.templates)
        each = [F.normalize(summed(self.of_text, self.raw_texts(space, k)), dim=-1) for k in range(count)]
        w = F.normalize(torch.stack(each).mean(0), dim=-1)
        image, text, prototype = self.mixed(v, w, space)
        if self.per_image:
            return v @ w.T + torch.einsum("nd,ncd->nc", image, text) + torch.einsum("nd,ncd->nc", image, prototype)
        return v @ w.T + image @ text.mean(0).T + image @ prototype.mean(0).T

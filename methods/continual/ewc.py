"""Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017 (EWC); online form: Schwarz et
al., "Progress & Compress", ICML 2018.

A quadratic pull towards the old weights, for each weight as strong as the old answers depend on it (Fisher).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cl_bench import Backbone, Batch, Experience, LabelSpace, Method, align_columns, batches, columns_of
from cl_bench.ranges import Amount, Count, Share, Whole

from .._differs import Differs
from ._decay import adamw
from ._fisher import Anchor, Weights, diagonal

__all__ = ["Ewc"]


class Ewc(Method):
    """Elastic Weight Consolidation: L = CE + strength * half * sum_k F_k (theta_k - theta*_k)^2, F the diagonal Fisher.

    ``variant`` chooses the whole setting; the three are different methods, and ``strength`` means nothing without one:

    - ``paper``: per-image gradients of the true label, mean over images, 1/2 in the penalty; ``mode`` as below.
    - ``facil`` (mmasana/FACIL, src/approach/ewc.py): squares of each full batch's mean gradient times its size, labels the
      network's own arg-max, F <- 0.5 F_old + 0.5 F, one anchor, 1/2, heads left out, softmax over all classes for F but
      cross-entropy among the current ones; strength 5000.
    - ``mammoth`` (aimagelab/mammoth, models/ewc_on.py): per-image squares times p(true label), divided by batches times
      batch size, F <- gamma F_old + F, one anchor, no 1/2.

    Weights that did not exist at an anchor (rows of later classes) are free. Elsewhere F is of the softmax that was
    trained: among the current classes if ``masked``, else all seen. Deviations: AdamW (betas 0.9 and 0.999, decay 0.01;
    none on a masked head) in place of SGD; F in evaluation mode (FACIL: in training mode).

    Args:
        strength: lambda (FACIL: 5000).
        mode: for ``paper``: ``offline`` keeps every experience's F and anchor; ``online`` has F <- gamma F + F_t.
        gamma: decay of the online F.
        fisher: for ``paper``: ``empirical`` (true labels), ``sampled`` (labels drawn from the model) or ``exact``
            (expectation over the model's labels).
        fisher_images: images for F; 0 = all.
        masked: cross-entropy among the current classes only (for the task-incremental view).
    """

    family: ClassVar[str] = "regularisation"
    paper: ClassVar[str] = "Kirkpatrick et al., PNAS 2017; Schwarz et al., ICML 2018"
    shares_batches: ClassVar[bool] = True
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("FACIL squares gradients of batch means at the network's own arg-max, "
                "averages with the old Fisher and leaves heads out.",
                "mmasana/FACIL@e09d2c83 src/approach/ewc.py:80", table="FACIL's own tables are from its code",
                here=({"variant": "paper"}, {"variant": "facil"}), both={"masked": True}),
        Differs("Mammoth weighs each image's squares by p(label), divides by batches times batch size and has no "
                "1/2.",
                "aimagelab/mammoth@e75a491c models/ewc_on.py:55", table="Mammoth's own tables are from its code",
                here=({"variant": "paper"}, {"variant": "mammoth"})),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-3,
        epochs: Whole = 5,
        batch_size: Count = 32,
        variant: Literal["paper", "facil", "mammoth"] = "paper",
        strength: Amount = 5000.0,
        mode: Literal["offline", "online"] = "offline",
        gamma: Share = 1.0,
        fisher: Literal["empirical", "sampled", "exact"] = "empirical",
        fisher_images: Whole = 0,
        masked: bool = False,
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.variant, self.strength, self.mode, self.gamma, self.fisher = variant, strength, mode, gamma, fisher
        self.fisher_images, self.masked = fisher_images, masked
        self.anchors = nn.ModuleList()

    @property
    def trains_among(self) -> LabelSpace:
        """The classes of the cross-entropy."""
        return self.current if self.masked or self.variant == "facil" else self.head.space

    def learned(self) -> Weights:
        """The parameters that are pulled, by name: what training moves, in FACIL's setting without the head."""
        named = self.backbone.named_parameters(prefix="backbone") if self.variant == "facil" else self.named_parameters()
        return {n: p for n, p in named if p.requires_grad}

    def penalty(self) -> Tensor:
        """sum over anchors of sum_k F_k (theta_k - theta*_k)^2, halved except in Mammoth's setting."""
        now = self.learned()
        total = torch.stack([a.penalty(now) for a in self.anchors]).sum()  # type: ignore[operator]
        return total if self.variant == "mammoth" else 0.5 * total

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(self(batch.x), batch.y, self.trains_among)
        return loss + self.strength * self.penalty() if len(self.anchors) else loss

    def configure_optimizers(self) -> Any:
        return adamw(self, masked=self.trains_among.ids != self.head.space.ids)

    def end(self, exp: Experience) -> None:
        fresh = Anchor(self.learned(), self.diagonal(exp))
        if self.variant == "paper" and self.mode == "offline":
            self.anchors.append(fresh)
            return
        keep, take = (0.5, 0.5) if self.variant == "facil" else (self.gamma, 1.0)
        fresh.blend(self.anchors[0] if len(self.anchors) else None, keep, take)  # type: ignore[arg-type]
        self.anchors = nn.ModuleList([fresh])

    def diagonal(self, exp: Experience) -> Weights:
        """The diagonal Fisher of the experience's images at the current weights, in evaluation mode."""
        was = self.training
        self.eval()
        weights = {n: p.detach() for n, p in self.learned().items()}
        among = self.head.space if self.variant == "facil" else self.trains_among
        flavour = {"facil": "batch_argmax", "mammoth": "weighted"}.get(self.variant, self.fisher)
        # vmap holds one gradient per image (and per class when exact): keep that within about a hundred megabytes
        width = sum(p.numel() for p in weights.values()) * (len(among) if flavour == "exact" else 1)
        chunk = self.batch_size if self.variant == "facil" else max(1, min(64, 25_000_000 // max(1, width)))
        images = min(self.fisher_images or len(exp.data), len(exp.data))  # type: ignore[arg-type]
        count = 0
        if self.variant == "mammoth":
            count = -(-images // self.batch_size) * self.batch_size

        def logits(w: Weights, x: Tensor) -> Tensor:
            return align_columns(functional_call(self, w, (x,)), self.head.space, among)

        def data() -> Iterator[tuple[Tensor, Tensor]]:
            left = images
            for x, y in batches(exp.data, chunk, shuffle=True, generator=self.rng.on("cpu"), device=self.device):
                short = self.variant == "facil" and len(x) < chunk and images >= chunk  # FACIL has full batches alone
                if left <= 0 or short:
                    return
                left -= len(x)
                yield x, columns_of(y, among)

        found = diagonal(logits, weights, data(), flavour, self.rng.on("cpu"), count)  # type: ignore[arg-type]
        self.train(was)
        return found


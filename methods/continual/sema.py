"""SEMA (Wang et al., "Self-Expansion of Pre-trained Models with Mixture of Adapters for Continual Learning", CVPR 2025,
arXiv 2403.18886, github.com/huiyiwang01/SEMA-CL): deep blocks grow an adapter when their input looks new."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from cl_bench import Backbone, Batch, Experience, attach
from cl_bench.heads import Head, LinearHead
from cl_bench.ranges import Amount, Count, Size, Text, Whole

from .._differs import Differs
from ._experts import Expert, Mixture, expands, watched
from ._frozen_trunk import FrozenTrunk

__all__ = ["SEMA"]


class SEMA(FrozenTrunk):
    """Every block has one adapter; the last ``expandable`` blocks get another when no descriptor knows the input.

    First experience: adapters, routers and head by cross-entropy, then descriptors (auto-encoders of the token mean) by
    reconstruction; all are frozen. Later: batches are scanned from shallow to deep blocks; where the smallest of the
    experts' novelties, each the batch's mean ``|z|`` of the reconstruction error, exceeds ``threshold``, the block gets an
    expert; it, its router row and the head are trained, then its descriptor; the scan goes on and is repeated until one
    adds nothing. At most one expert per block and experience. If nothing was added, only the head is trained.
    Cross-entropy is among the current classes; SGD with momentum 0.9 and decay 5e-4 (as released also on the head's other
    rows), its cosine stepped per epoch; rows of the head from U(+-1/sqrt(d)), biases zero.

    Deviations: errors are recorded while descriptors are trained only (the authors record in the other phase too and overwrite
    it). A scan reads whole passes. Descriptor widths are clipped to a sixth of the width, the published ratio.

    Args:
        r, descriptor: widths of bottleneck and auto-encoder; memory: how many errors are kept per expert.
        expandable: how many of the last matched blocks may grow (published: 3 of 12).
        threshold: novelty that calls for an expert (published: 2; 1 for ImageNet-A and VTAB).
        descriptor_epochs, descriptor_lr: the descriptors' training; scan_size: images per scanned batch.
    """

    family: ClassVar[str] = "adapter"
    paper: ClassVar[str] = "Wang et al., SEMA, CVPR 2025"
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("The novelty is an absolute value, so inputs that are too easy expand as well; the paper's has a "
                "sign.",
                "huiyiwang01/SEMA-CL@5a455126 backbone/sema_block.py:49", table="released code"),
    )
    exempt = {"state that grows with the images is declared": "the last reconstruction errors, one number per image"}

    def __init__(
        self, backbone: Backbone, *, lr: Amount = 0.005, epochs: Whole = 5, batch_size: Count = 32, r: Size = 16,
        descriptor: Size = 128, memory: Count = 500, expandable: Count = 3, threshold: float = 2.0,
        descriptor_epochs: Whole = 20, descriptor_lr: Amount = 0.01, weight_decay: Amount = 5e-4, scan_size: Count = 128,
        at: Text = r"blocks\.\d+",
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.r, self.descriptor, self.memory, self.expandable = r, descriptor, memory, expandable
        self.threshold, self.descriptor_epochs, self.descriptor_lr = threshold, descriptor_epochs, descriptor_lr
        self.weight_decay, self.scan_size, self.at = weight_decay, scan_size, at
        self.adapters = attach(backbone, Mixture, at, r=r, descriptor=descriptor, memory=memory)
        self.learned, self.grown = 0, list[int]()  # the blocks (counted over the matched ones) that grew in this experience

    def make_head(self) -> Head:
        return LinearHead(self.backbone.num_features, bound=self.backbone.num_features**-0.5)

    @property
    def mixtures(self) -> list[Mixture]:
        return [a for _, a in self.adapters.each("default")]  # type: ignore[misc]

    def epochs_for(self, exp: Experience) -> int:
        return 0 if self.grown else self.epochs

    def begin(self, exp: Experience) -> None:
        self.grown = []
        super().begin(exp)
        for mixture in self.mixtures:
            for expert in mixture.experts:
                expert.requires_grad_(not self.learned)
                expert.descriptor.requires_grad_(False)  # type: ignore[union-attr]
        while self.learned and (found := self.scan(exp)) is not None:
            self.expand(found, exp)
        self.total_steps = self.steps(exp)

    @torch.no_grad()
    def scan(self, exp: Experience) -> int | None:
        """The shallowest block that may grow and finds a batch new, or None after a whole pass."""
        blocks = range(max(0, len(self.mixtures) - self.expandable), len(self.mixtures))
        self.eval()
        with watched(self.mixtures):
            for batch in self.shuffled(exp, self.scan_size):
                self.backbone.forward_features(batch.x)
                for k in blocks:
                    mixture = self.mixtures[k]
                    found = [e.novelty(mixture.seen[0]) for e in mixture.experts]  # type: ignore[operator]
                    if k not in self.grown and expands(found, self.threshold):
                        return k
        return None

    def expand(self, k: int, exp: Experience) -> None:
        """Add an expert to block k, train it with its router row and the head, then its descriptor."""
        layer = list(self.adapters.layers.values())[k]
        fresh = Expert(layer, self.r, self.descriptor, self.memory).to(self.device, self.dtype)
        fresh.descriptor.requires_grad_(False)
        self.mixtures[k].experts.append(fresh)
        self.grown.append(k)
        self.fit_loop(exp, self.trained(), lambda b: self.training_step(b, 0), self.lr, self.epochs, self.weight_decay)
        fresh.requires_grad_(False)
        self.describe(exp, [k])

    def describe(self, exp: Experience, blocks: list[int]) -> None:
        """Train the newest descriptors of ``blocks`` and keep their last errors."""
        newest: list[Expert] = [self.mixtures[k].experts[-1] for k in blocks]  # type: ignore[misc]

        def loss(batch: Batch) -> Tensor:
            with torch.no_grad():
                self.backbone.forward_features(batch.x)
            total = batch.x.new_zeros(())
            for k, expert in zip(blocks, newest, strict=True):
                error = expert.error(self.mixtures[k].seen[0])
                expert.record(error.detach())
                total = total + error.mean()
            return total

        parameters = [p.requires_grad_(True) for e in newest for p in e.descriptor.parameters()]
        with watched(self.mixtures):
            self.fit_loop(exp, parameters, loss, self.descriptor_lr, self.descriptor_epochs, self.weight_decay)
        for expert in newest:
            expert.descriptor.requires_grad_(False)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.loss(self(batch.x), batch.y, among=self.current)

    def configure_optimizers(self) -> Any:
        return self.sgd(weight_decay=self.weight_decay)

    def end(self, exp: Experience) -> None:
        if not self.learned:
            first = max(0, len(self.mixtures) - self.expandable)
            self.describe(exp, list(range(first, len(self.mixtures))))
        for mixture in self.mixtures:
            mixture.experts.requires_grad_(False)
        self.learned += 1

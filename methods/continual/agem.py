"""Chaudhry et al., "Efficient Lifelong Learning with A-GEM", ICLR 2019 (facebookresearch/agem).

A step may not raise the average loss on the memory: a gradient that points against the memory's is projected.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cl_bench import Backbone, Experience, LabelSpace, Method, batches
from cl_bench.data.tensor import as_float
from cl_bench.memory import Reservoir
from cl_bench.ranges import Amount, Count, Whole

from .._differs import Differs

__all__ = ["Agem"]


class Agem(Method):
    """Averaged Gradient Episodic Memory: no step may raise the average loss on the stored images.

    After each experience a random ``patterns`` of its images are kept (Mammoth keeps one mini-batch, far fewer than its
    setting says). SGD without momentum or weight decay at a constant rate, so that the projected gradient is the update.

    Args:
        patterns: stored images per experience.
        sample_size: stored images of which the reference gradient is the mean.
        lr, epochs, batch_size: the paper's single pass over Split-CIFAR-100.
        masked: cross-entropy among an image's own experience's classes only, for stored images too, as in the official
            code (for the task-incremental view).
    """

    family: ClassVar[str] = "replay"
    paper: ClassVar[str] = "Chaudhry et al., ICLR 2019"
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("Mammoth stores one mini-batch per task whatever its buffer size; the paper and its own code "
                "store a fixed number per class.",
                "aimagelab/mammoth@e75a491c models/agem.py:43", table="the authors' own code, not Mammoth"),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 0.03,
        epochs: Whole = 1,
        batch_size: Count = 10,
        patterns: Count = 250,
        sample_size: Count = 256,
        masked: bool = False,
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.patterns, self.sample_size, self.masked = patterns, sample_size, masked
        self.memories = nn.ModuleList()  # one per experience
        self.spaces: list[LabelSpace] = []  # and its classes

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self(batch.x), batch.y, self.current if self.masked else None)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if not len(self.memories):
            return
        params = [p for p in self.parameters() if p.requires_grad]
        with torch.enable_grad():
            reference = torch.autograd.grad(self.memory_loss(), params, allow_unused=True)
        # a parameter that one of the two losses does not reach has gradient zero there
        g = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in params])
        pairs = zip(params, reference, strict=True)
        r = torch.cat([(torch.zeros_like(p) if q is None else q).flatten() for p, q in pairs])
        for p, part in zip(params, project(g, r).split([p.numel() for p in params]), strict=True):
            p.grad = part.view_as(p)

    def memory_loss(self) -> Tensor:
        """Mean cross-entropy of a random sample of all stored images."""
        x, y = (torch.cat(parts) for parts in zip(*((m.x, m.y) for m in self.memories), strict=True))
        rows = torch.randperm(len(y), generator=self.rng.on("cpu"))[: self.sample_size].to(y.device)
        logits = self(as_float(x[rows]))
        if self.masked:
            task = torch.cat([torch.full_like(m.y, k) for k, m in enumerate(self.memories)])[rows]  # type: ignore[arg-type]
            own = torch.tensor([[c in s for c in self.head.space] for s in self.spaces], device=y.device)
            logits = logits.masked_fill(~own[task], -torch.inf)
        return self.loss(logits, y[rows])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=self.lr)

    def end(self, exp: Experience) -> None:
        memory = Reservoir(self.patterns)
        for x, y in batches(exp.data, 256, device="cpu"):
            memory.add(x, y, self.rng.on("cpu"))
        self.memories.append(memory.to(self.device))
        self.spaces.append(exp.space)


def project(g: Tensor, reference: Tensor) -> Tensor:
    """g where g . r >= 0, else g - (g . r / |r|^2) r, for flat gradients g and r (P,)."""
    dot = g @ reference
    return torch.where(dot < 0, g - dot / (reference @ reference).clamp_min(torch.finfo(g.dtype).tiny) * reference, g)

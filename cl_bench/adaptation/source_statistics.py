"""What may be taken from source data before deployment: Fisher information, prototypes, a confidence threshold."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import batches
from ..data.tensor import as_float, sent
from ..heads import columns_of
from ..memory import as_uint8
from ..rng import Rng
from ..types import Batch, Experience
from .base import Deployed

__all__ = ["Replay", "confidence_threshold", "fisher", "prototypes", "source_batches"]


def source_batches(
    source: Experience, size: int, rng: Rng, device: torch.device, samples: int | None = None
) -> Iterator[Batch]:
    """Batches of a random subset of at most ``samples`` source images (all when None), in random order."""
    n = len(source.data)  # type: ignore[arg-type]
    rows = torch.randperm(n, generator=rng.on("cpu"))[: n if samples is None else samples]
    subset = source.data.subset(rows) if hasattr(source.data, "subset") else torch.utils.data.Subset(
        source.data, rows.tolist())
    return batches(subset, size, device=device)


def fisher(model: Deployed, params: list[nn.Parameter], data: Iterator[Batch]) -> list[Tensor]:
    """EATA's diagonal Fisher information: per batch the gradient of CE(z, argmax z), squared, averaged over batches.

    The square of a batch-mean gradient is far smaller than a per-sample Fisher: published weights of the penalty only
    make sense with this estimator. ``params`` must require gradients; ``model`` stays as it is.

    Returns:
        One tensor per parameter, of its shape; zeros where no gradient arrives.
    """
    total = [torch.zeros_like(p) for p in params]
    count = 0
    for x, _ in data:
        logits = model(x)
        loss = F.cross_entropy(logits, logits.argmax(1))
        for t, g in zip(total, torch.autograd.grad(loss, params, allow_unused=True), strict=True):
            if g is not None:
                t += g.square()
        count += 1
    return [t / max(count, 1) for t in total]


@torch.no_grad()
def prototypes(model: Deployed, data: Iterator[Batch]) -> Tensor:
    """Mean feature of every class of ``model.head.space`` by true source label, (C, d); zero for an empty class."""
    space = model.head.space
    total: Tensor | None = None
    count: Tensor | None = None
    for x, y in data:
        f, at = model.features(x), columns_of(y, space)
        if total is None or count is None:
            total, count = f.new_zeros(len(space), f.shape[1]), f.new_zeros(len(space))
        total.index_add_(0, at, f)
        count.index_add_(0, at, torch.ones_like(at, dtype=f.dtype))
    if total is None or count is None:
        raise ValueError("there is no source data to take prototypes from")
    return total / count.clamp(min=1).unsqueeze(1)


@torch.no_grad()
def confidence_threshold(model: Deployed, data: Iterator[Batch], quantile: float = 0.05, margin: float = 0.05) -> float:
    """CoTTA's rule for a new data set: the 5 % quantile of source confidences, minus 0.05."""
    confidence = torch.cat([model(x).softmax(1).amax(1) for x, _ in data])
    return float(confidence.quantile(quantile)) - margin


class Replay(nn.Module):
    """Labelled source images kept for replay: at most ``size`` of them, drawn at random, as uint8.

    Batches run through all images in a random order, then through another one; the last batch of a pass may be small.
    """

    x: Tensor
    y: Tensor

    def __init__(self, source: Experience, size: int, batch: int, rng: Rng, device: torch.device) -> None:
        super().__init__()
        parts = [(as_uint8(x), y) for x, y in source_batches(source, batch, rng, device, size)]
        if not parts:
            raise ValueError("there is no source data to replay")
        self.batch = batch
        self.register_buffer("x", torch.cat([p[0] for p in parts]))
        self.register_buffer("y", torch.cat([p[1] for p in parts]))
        self.order: list[int] = []

    @property
    def samples(self) -> int:
        """How many images are kept."""
        return len(self.y)

    def all(self) -> Iterator[Batch]:
        """Every image once, in batches."""
        for x, y in zip(self.x.split(self.batch), self.y.split(self.batch), strict=True):
            yield Batch(as_float(x), y)

    def draw(self, rng: Rng) -> Batch:
        """The next labelled batch."""
        if not self.order:
            self.order = torch.randperm(self.samples, generator=rng.on("cpu")).tolist()
        rows = sent(torch.tensor(self.order[: self.batch]), self.x.device)
        self.order = self.order[self.batch :]
        return Batch(as_float(self.x[rows]), self.y[rows])

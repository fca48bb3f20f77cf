"""Stored training data: a reservoir memory, its base, and the archive that keeps everything.

Each is an ``nn.Module`` whose images, labels and extras are buffers: they move with the method, are copied by
``mark`` and counted into the record's bytes, and ``samples`` is counted into its stored images. Images are kept as
uint8 (what the data sets hold), which is exact for images that were not augmented and off by at most 1/510 otherwise;
data of another kind (rows of a table, tokens) are kept in their own dtype and shape. Every draw takes an explicit
generator.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .data.tensor import TensorData, as_float, sent
from .types import Batch

__all__ = ["Archive", "Memory", "Reservoir", "as_uint8"]


def as_uint8(x: Tensor) -> Tensor:
    """A batch of float images (N, C, H, W) in [0, 1] to uint8, rounded; everything else passes."""
    if x.ndim != 4 or not x.is_floating_point():
        return x.detach()
    return (x.detach() * 255).round_().clamp_(0, 255).to(torch.uint8)


class Memory(nn.Module):
    """At most ``size`` stored ``x`` (n, ...), images as uint8, with labels ``y`` (n,) and named ``extras`` (n, ...).

    Extras (a network's answers at insertion, say) are buffers ``extra_<name>``, float32 or, given so, float64; one that
    grows wider over time (logits of a growing head) is padded with NaN.

    Raises:
        ValueError: if ``size`` is not positive.
    """

    x: Tensor
    y: Tensor

    def __init__(self, size: int, extras: tuple[str, ...] = ()) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"a memory holds at least one image, not {size}")
        self.size, self.extras, self.seen = size, extras, 0
        self.register_buffer("x", torch.zeros(0, dtype=torch.uint8))
        self.register_buffer("y", torch.zeros(0, dtype=torch.int64))
        for name in extras:
            self.register_buffer(f"extra_{name}", torch.zeros(0))

    @property
    def samples(self) -> int:
        """How many images are stored."""
        return len(self.y)

    def __len__(self) -> int:
        return len(self.y)

    def draw(self, n: int, generator: torch.Generator) -> Batch:
        """``min(n, samples)`` distinct stored images, float in [0, 1], with their labels."""
        return self.read(self.draw_rows(n, generator))

    def draw_rows(self, n: int, generator: torch.Generator) -> Tensor:
        """Row numbers of ``min(n, samples)`` distinct stored images."""
        rows = torch.randperm(len(self), generator=generator, device=generator.device)[:n]
        return sent(rows, self.y.device)

    def read(self, rows: Tensor) -> Batch:
        """The stored images and labels at ``rows``."""
        return Batch(as_float(self.x[rows]), self.y[rows])

    def extra(self, name: str, rows: Tensor) -> Tensor:
        """The extra ``name`` (len(rows), ...) at ``rows``; NaN where it was not yet defined at insertion."""
        return getattr(self, f"extra_{name}")[rows]

    # ------------------------------------------------------------------ for subclasses
    def _put(self, at: Tensor, x: Tensor, y: Tensor, extras: dict[str, Tensor]) -> None:
        """Write rows ``at`` (distinct; those beyond the end append)."""
        x = as_uint8(x)
        self.x = _write(self.x if len(self.y) else x.new_zeros(0), at, x)
        self.y = _write(self.y, at, y)
        for name, value in extras.items():
            kept = value.detach() if value.dtype == torch.float64 else value.detach().float()
            old = getattr(self, f"extra_{name}")
            setattr(self, f"extra_{name}", _write(old if len(old) else old.to(kept), at, kept, grows=value.ndim == 2))

    def _check(self, extras: dict[str, Tensor]) -> None:
        if set(extras) != set(self.extras):
            raise ValueError(f"this memory keeps the extras {self.extras}, got {tuple(extras)}")


def _write(old: Tensor, at: Tensor, new: Tensor, grows: bool = False) -> Tensor:
    """A copy of ``old`` with ``new`` at rows ``at``: longer if rows lie beyond the end, and where a table (n, width)
    ``grows``, wider and NaN-padded."""
    if not len(at):
        return old
    shape = [max(len(old), int(at.max()) + 1), *new.shape[1:]]
    new, at = new.to(old), sent(at, old.device)
    if grows and old.ndim == 2:
        shape[1] = max(shape[1], old.shape[1])
    out = old.new_full(shape, torch.nan) if grows else old.new_zeros(shape)
    if len(old):
        (out[: len(old), : old.shape[1]] if grows else out[: len(old)]).copy_(old)
    if grows:
        out[at] = torch.nan
        out[at, : new.shape[1]] = new
    else:
        out[at] = new
    return out


class Reservoir(Memory):
    """Vitter's algorithm R (1985): after n images each of them is stored with probability size / n."""

    def add(self, x: Tensor, y: Tensor, generator: torch.Generator, **extras: Tensor) -> None:
        """Offer a batch, in order. Draws one number per image that arrives after the memory is full."""
        self._check(extras)
        n = torch.arange(self.seen, self.seen + len(y))  # how many came before each
        slot = n.clone()
        late = n >= self.size
        if bool(late.any()):
            u = torch.rand(int(late.sum()), generator=generator, device=generator.device, dtype=torch.float64).cpu()
            slot[late] = (u * (n[late] + 1)).long()
        self.seen += len(y)
        last: dict[int, int] = {int(s): k for k, s in enumerate(slot.tolist()) if s < self.size}  # later ones win
        if last:
            rows = torch.tensor(list(last.values()))
            picked = {k: v[sent(rows, v.device)] for k, v in extras.items()}
            self._put(torch.tensor(list(last)), x[sent(rows, x.device)], y[sent(rows, y.device)], picked)


class Archive(nn.Module):
    """Everything ever given, as buffers: what joint training is allowed to keep, and counted as such."""

    x: Tensor
    y: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("x", torch.zeros(0, dtype=torch.uint8))
        self.register_buffer("y", torch.zeros(0, dtype=torch.int64))

    @property
    def samples(self) -> int:
        """How many images are stored."""
        return len(self.y)

    def add(self, data: TensorData) -> None:
        """Keep all of ``data``."""
        x, y = data.x.to(self.x.device), data.y.to(self.y.device)
        self.x, self.y = (torch.cat([self.x, x]), torch.cat([self.y, y])) if len(self.y) else (x, y)

    def all(self) -> TensorData:
        """Everything as one data set."""
        return TensorData(self.x, self.y)

"""Stored training images: reservoir, class-balanced and herding memories, and the archive that keeps everything.

Each is an ``nn.Module`` whose images, labels and extras are buffers: they move with the method, are copied by
``mark`` and counted into the record's bytes, and ``samples`` is counted into its stored images. Images are kept as
uint8 (what the data sets hold), which is exact for images that were not augmented and off by at most 1/510 otherwise.
Every draw takes an explicit generator.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .data.tensor import TensorData, as_float
from .types import Batch

__all__ = ["Archive", "ClassBalanced", "Herding", "Memory", "Reservoir", "as_uint8"]


def as_uint8(x: Tensor) -> Tensor:
    """Float images in [0, 1] to uint8, rounded; uint8 images pass."""
    return x if x.dtype == torch.uint8 else (x.detach() * 255).round_().clamp_(0, 255).to(torch.uint8)


class Memory(nn.Module):
    """At most ``size`` stored images ``x`` uint8 (n, 3, H, W) with labels ``y`` (n,) and named ``extras`` (n, ...).

    Extras (a network's answers at insertion, say) are float buffers ``extra_<name>``; one that grows wider over time
    (logits of a growing head) is padded with NaN.

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
        return rows.to(self.y.device)

    def read(self, rows: Tensor) -> Batch:
        """The stored images and labels at ``rows``."""
        return Batch(as_float(self.x[rows]), self.y[rows])

    def extra(self, name: str, rows: Tensor) -> Tensor:
        """The extra ``name`` (len(rows), ...) at ``rows``; NaN where it was not yet defined at insertion."""
        return getattr(self, f"extra_{name}")[rows]

    # ------------------------------------------------------------------ for subclasses
    def _put(self, at: Tensor, x: Tensor, y: Tensor, extras: dict[str, Tensor]) -> None:
        """Write rows ``at`` (distinct; those beyond the end append)."""
        self.x = _write(self.x, at, as_uint8(x))
        self.y = _write(self.y, at, y)
        for name, value in extras.items():
            setattr(self, f"extra_{name}", _write(getattr(self, f"extra_{name}"), at, value.detach().float()))

    def _check(self, extras: dict[str, Tensor]) -> None:
        if set(extras) != set(self.extras):
            raise ValueError(f"this memory keeps the extras {self.extras}, got {tuple(extras)}")

    def _keep(self, rows: Tensor) -> None:
        """Drop every row but ``rows``, in that order."""
        for name in ("x", "y", *(f"extra_{e}" for e in self.extras)):
            setattr(self, name, getattr(self, name)[rows])


def _write(old: Tensor, at: Tensor, new: Tensor) -> Tensor:
    """A copy of ``old`` with ``new`` at rows ``at``: longer if rows lie beyond the end, NaN-padded where a table
    (n, width) gets wider."""
    if not len(at):
        return old
    new, at = new.to(old), at.to(old.device)
    shape = [max(len(old), int(at.max()) + 1), *new.shape[1:]]
    table = new.ndim == 2
    if table and old.ndim == 2:
        shape[1] = max(shape[1], old.shape[1])
    out = old.new_full(shape, torch.nan) if table else old.new_zeros(shape)
    if len(old):
        (out[: len(old), : old.shape[1]] if table else out[: len(old)]).copy_(old)
    if table:
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
            rows = torch.tensor(list(last.values()), device=y.device)
            picked = {k: v[rows.to(v.device)] for k, v in extras.items()}
            self._put(torch.tensor(list(last)), x[rows], y[rows], picked)


class ClassBalanced(Memory):
    """Greedy balancing sampler (GDumb; Prabhu et al., ECCV 2020): a full memory gives up a random image of its largest
    class for one of a class that has fewer than size / classes."""

    def add(self, x: Tensor, y: Tensor, generator: torch.Generator, **extras: Tensor) -> None:
        """Offer a batch, in order."""
        self._check(extras)
        known = self.y.tolist()
        writes: dict[int, int] = {}
        for k, label in enumerate(y.tolist()):
            self.seen += 1
            if len(known) < self.size:
                writes[len(known)] = k
                known.append(label)
                continue
            counts = {c: known.count(c) for c in {*known, label}}
            if counts[label] * len(counts) >= self.size:
                continue
            largest = max(counts.values())
            full = sorted(c for c, n in counts.items() if n == largest and c != label)
            victims = [row for row, c in enumerate(known) if c in full[:1]]
            at = victims[int(torch.randint(len(victims), (), generator=generator, device=generator.device))]
            writes[at], known[at] = k, label
        if writes:
            rows = torch.tensor(list(writes.values()), device=y.device)
            picked = {name: v[rows.to(v.device)] for name, v in extras.items()}
            self._put(torch.tensor(list(writes)), x[rows], y[rows], picked)


class Herding(Memory):
    """iCaRL's exemplars (Rebuffi et al., CVPR 2017): per class, the images whose running mean feature stays closest to
    the class mean; the quota is ``size // classes`` so old classes keep the first of their list.

    Args:
        size: images over all classes.
        per_class: a fixed quota instead of ``size // classes`` (then ``size`` is only a cap).
    """

    def __init__(self, size: int, per_class: int = 0) -> None:
        super().__init__(size)
        self.per_class = per_class

    @torch.no_grad()
    def add(self, x: Tensor, y: Tensor, features: Tensor) -> None:
        """Choose among all images of some new classes, given their features (N, d); a known class is chosen anew."""
        new = y.unique().tolist()
        old = [c for c in self.y.unique().tolist() if c not in new]
        quota = self.per_class or self.size // (len(new) + len(old))
        quota = min(quota, self.size // (len(new) + len(old)))
        if quota < 1:
            raise ValueError(f"a memory of {self.size} images cannot hold one of each of {len(new) + len(old)} classes")
        kept = [torch.nonzero(self.y == c).flatten()[:quota] for c in old]
        self._keep(torch.cat(kept) if kept else torch.zeros(0, dtype=torch.int64, device=self.y.device))
        for c in new:
            rows = torch.nonzero(y == c).flatten()
            chosen = rows[herd(features[rows], quota).to(rows.device)]
            at = torch.arange(len(self), len(self) + len(chosen))
            self._put(at, x[chosen.to(x.device)], y[chosen], {})
        self.seen += len(y)


def herd(features: Tensor, n: int) -> Tensor:
    """Row numbers of ``min(n, N)`` of the features (N, d), best first: greedily closest running mean to the mean of the
    normalised features (iCaRL, algorithm 4)."""
    f = nn.functional.normalize(features.double(), dim=1)
    mean, total = f.mean(0), torch.zeros_like(f[0])
    free = torch.ones(len(f), dtype=torch.bool, device=f.device)
    picked: list[int] = []
    for k in range(min(n, len(f))):
        distance = (mean - (total + f) / (k + 1)).norm(dim=1).masked_fill(~free, torch.inf)
        best = int(distance.argmin())
        free[best] = False
        total = total + f[best]
        picked.append(best)
    return torch.tensor(picked, dtype=torch.int64)


class Archive(nn.Module):
    """Every image ever given, as buffers: what joint training is allowed to keep, and counted as such."""

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

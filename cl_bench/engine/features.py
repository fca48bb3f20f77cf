"""Features of images by a trunk that nothing trains: computed once per data set and looked up from then on.

A row of the matrix asks for all test images seen so far, so a trunk that stays as it is would answer for the same images in
every row. Here each data set goes through it once, in its own order, whatever the run did before: what is remembered is a
function of weights, preprocessing, code and data alone, and so a resumed run finds the same bits. Runs of a folder of
records share what took long: of test images, and of the training images that a method asks for as features
(:meth:`cl_bench.backbones.Backbone.encoded`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .. import ranks
from ..backbones import Backbone
from ..data.digest import digest_of
from ..method import Method
from ..records.source_digest import UNKNOWN
from .compute import Compute, resolve_device
from .feed import Pool
from .kept import Kept
from .meter import Meter
from .trunk import glance, network_code, trunk_digest

__all__ = ["Features", "lender"]

MOST_BYTES = 512 * 2**20  # of features that a run keeps
LONG = 1.0  # seconds that a data set must have taken to be kept for other runs
FEW = 64  # training images that are encoded in the time that it takes to tell whose features they are


class Features:
    """What one run remembers.

    Args:
        cache: the folder that the runs of a folder of records share; None: nothing is kept for others.
        meter: is told of images whose features were remembered, as if they had been computed: what a method costs does not
            depend on what ran before.
    """

    def __init__(self, compute: Compute, cache: Path | None, meter: Meter) -> None:
        self.compute, self.cache, self.meter = compute, cache, meter
        self.trunk: str | None = None
        self.told: tuple[Any, str | None] = None, None  # what a digest was taken for, and what it was
        self.kept: dict[int, tuple[Dataset, Tensor]] = {}  # by identity, which the data set beside it keeps unique

    def of(self, method: Method, data: Sequence[Dataset], size: int, row: object = None) -> Tensor | None:
        """Features (n, d) of all images of ``data``, in order; None where the trunk is trained or does more than a fixed
        function of its images, and where they would not fit. ``row``: within one row of a matrix the digest of a trunk whose
        tensors were not written to is taken once."""
        images = sum(len(part) for part in data)  # type: ignore[arg-type]
        if self.compute.precision != "32-true" or images * method.backbone.num_features * 4 > MOST_BYTES:
            return None
        if (trunk := self._digest(method.backbone, row)) is None:
            return None
        if trunk != self.trunk:
            self.trunk, self.kept = trunk, {}
        for part in data:
            if id(part) not in self.kept:
                found = self._found(method.backbone, part, size)
                if found is None:
                    return None
                self.kept[id(part)] = part, found
        return torch.cat([self.kept[id(part)][1] for part in data])

    def _digest(self, backbone: Backbone, row: object) -> str | None:
        if row is None or (seen := glance(backbone)) is None:
            return trunk_digest(backbone)
        if (row, seen) != self.told[0]:
            self.told = (row, seen), trunk_digest(backbone)
        return self.told[1]

    def lend(self, data: Dataset) -> Callable[[Backbone, int], Tensor | None]:
        """Features of training data for a method that asks for them (:func:`lender`)."""
        return lender(self.compute, None if ranks.size() > 1 else self.cache, self.meter, data)

    def _found(self, backbone: Backbone, data: Dataset, size: int) -> Tensor | None:
        return _computed(self.compute, self.cache, self.meter, str(self.trunk), backbone, data, size)

    @contextmanager
    def answering(self, method: Method, batch: Callable[[], tuple[Tensor, Tensor, int] | None],
                  table: Tensor) -> Iterator[None]:
        """While inside, the trunk looks the batch at hand up in ``table``: the very images that the engine handed out, nothing
        written into them, and nothing in the trunk that is not as it was. ``batch`` says (images, rows, their version) of it.
        A batch is looked up once. Anything else goes through the network: a method may lend it prompts and ask again."""
        backbone, counted, untouched = method.backbone, self.meter.count, glance(method.backbone)
        through, answered = backbone.forward_features, list[Tensor]()

        def forward_features(x: Tensor) -> Tensor:
            now = batch()
            if now is None or x is not now[0] or x._version != now[2] or torch.is_grad_enabled():
                return through(x)
            if any(x is before for before in answered) or untouched is None or glance(backbone) != untouched:
                return through(x)
            answered[:] = [x]
            counted(len(x))
            return table[now[1].to(table.device)]

        backbone.__dict__["forward_features"] = forward_features
        try:
            yield
        finally:
            backbone.__dict__.pop("forward_features", None)


def lender(compute: Compute, cache: Path | None, meter: Meter, data: Dataset) -> Callable[[Backbone, int], Tensor | None]:
    """What tells the features (n, d) of all of ``data`` by a backbone, computed in batches of some size here or by an earlier
    run; None where that is nothing to remember. A function, which holds this data set and nothing else of a run."""

    def encoded(backbone: Backbone, size: int) -> Tensor | None:
        images = len(data)  # type: ignore[arg-type]
        if cache is None or images < FEW or not hasattr(data, "digest"):
            return None
        if compute.precision != "32-true" or (trunk := trunk_digest(backbone)) is None:
            return None
        started = meter.forward_images
        found = _computed(compute, cache, meter, trunk, backbone, data, size)
        if found is not None:
            meter.forward_images = started + images
        return found

    return encoded


def _computed(compute: Compute, cache: Path | None, meter: Meter, trunk: str, backbone: Backbone, data: Dataset,
              size: int) -> Tensor | None:
    """Features of a data set in its own order, those of an earlier run where there are any; counted by nobody."""
    device = resolve_device(compute.device)
    told = cache is not None and hasattr(data, "digest")  # else each item would have to be read to know the data
    kept = _kept(compute, cache, trunk, backbone, data, size, device) if told and cache is not None else None
    if kept is not None and (found := kept.read()) is not None:
        return found["features"].to(device)
    started, before, counted = time.perf_counter(), torch.get_rng_state(), meter.forward_images
    with torch.no_grad():
        pool = Pool([data], size, device, workers=compute.workers, draws=torch.Generator())
        parts = [backbone.forward_features(x) for _, x in pool.batches(torch.arange(len(pool)))]
    meter.forward_images = counted  # counted where the method asks for them
    features = torch.cat(parts) if parts else torch.zeros(0, backbone.num_features, device=device)
    if not torch.equal(before, torch.get_rng_state()) or features.dtype != torch.float32:
        torch.set_rng_state(before)  # it draws at random: another pass would be another answer
        return None
    if kept is not None and time.perf_counter() - started >= LONG:
        kept.write({"features": features.cpu().contiguous()})
    return features


def _kept(compute: Compute, cache: Path, trunk: str, backbone: Backbone, data: Dataset, size: int,
          device: torch.device) -> Kept | None:
    """The file of one data set's features; None where some of the code that makes them cannot be told."""
    if (code := network_code(backbone, data)) == UNKNOWN:
        return None
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    how = [size, str(place), torch.get_num_threads(), torch.__version__, compute.layout, compute.compile]
    return Kept(cache, "features", [trunk, code, digest_of(data), *how])

"""What test-time scenarios share: streams of domains and streams of corruptions."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cl_bench import Scenario, TensorData, TestSet, UserError
from cl_bench.corruptions import EXTRA, STANDARD, corrupt
from cl_bench.data.tensor import as_float, labels_of
from cl_bench.ranges import Count, Seed

from ._data import Deferred, digest_of, numbers, seed_of

# RoTTA's PTTA order (Yuan et al., CVPR 2023), also that of PeTTA's recurring streams.
ROTTA: tuple[str, ...] = (
    "motion_blur", "snow", "fog", "shot_noise", "defocus_blur", "contrast", "zoom_blur", "brightness", "frost",
    "elastic_transform", "glass_blur", "gaussian_noise", "pixelate", "jpeg_compression", "impulse_noise",
)  # fmt: skip
LISTS = {"standard": STANDARD, "extra": EXTRA, "all": STANDARD + EXTRA, "rotta": ROTTA}


class DomainStream(Scenario):
    """A test-time stream of domains in a published order. Subclasses say ``domains()`` and ``images(domain)``.

    ``order`` None keeps the published order of the domains; a number draws another one, as CoTTA's ten orders do.
    """

    family: ClassVar[str] = "test-time stream"
    backbone: str = "glyph_resnet"
    gives: frozenset[str] = frozenset({"names", "source"})
    answers = "all"

    def __init__(self, order: Seed | None = None, test_batch_size: Count = 64) -> None:
        self.order, self.test_batch_size = order, test_batch_size

    def domains(self) -> tuple[str, ...]:
        """Names of the domains in the published order."""
        raise NotImplementedError

    def images(self, domain: str) -> Dataset:
        """The labelled test images of one domain."""
        raise NotImplementedError

    def ordered(self) -> tuple[str, ...]:
        """Names of the domains in the order of arrival."""
        names = self.domains()
        if self.order is None:
            return names
        return tuple(names[k] for k in numbers("domain order", self.order).permutation(len(names)))

    def stream(self) -> Sequence[TestSet]:
        return tuple(TestSet(name, self.space, self.images(name), name) for name in self.ordered())

    def protocol(self) -> Mapping[str, Any]:
        return {
            "domains": list(self.domains()),
            "order_policy": "published" if self.order is None else "random",
            "test_batch_size": self.test_batch_size,
            "reset": self.reset,
        }


class CorruptionStream(DomainStream):
    """Domains that are corruptions with severities 1 to 5; ``at(severity)`` is what gradual streams build on."""

    lists: ClassVar[Mapping[str, tuple[str, ...]]] = LISTS
    known: ClassVar[tuple[str, ...]] = STANDARD + EXTRA

    def __init__(
        self,
        severity: int = 5,
        corruptions: str | list[str] = "standard",
        order: Seed | None = None,
        test_batch_size: Count = 64,
    ) -> None:
        super().__init__(order, test_batch_size)
        self.severity, self.corruptions = _severity(severity), corruptions
        self.domains()  # an unknown list is refused now, not in the middle of a run

    def domains(self) -> tuple[str, ...]:
        if isinstance(self.corruptions, str):
            if self.corruptions in self.lists:
                return self.lists[self.corruptions]
            names: tuple[str, ...] = tuple(part.strip() for part in self.corruptions.split(","))
        else:
            names = tuple(self.corruptions)
        unknown = [name for name in names if name not in self.known]
        if unknown or not names or len(set(names)) != len(names):
            raise UserError(
                f"corruptions {self.corruptions!r}: use one of {', '.join(self.lists)}, or different names among "
                f"{', '.join(self.known)}."
            )
        return names

    def corrupted(self, corruption: str, severity: int) -> Dataset:
        """The labelled test images under one corruption at one severity."""
        raise NotImplementedError

    def images(self, domain: str) -> Dataset:
        return self.corrupted(domain, self.severity)

    def at(self, severity: int) -> Sequence[TestSet]:
        """The stream at another severity (1 to 5)."""
        severity = _severity(severity)
        return tuple(TestSet(n, self.space, self.corrupted(n, severity), n) for n in self.ordered())

    def protocol(self) -> Mapping[str, Any]:
        return {**super().protocol(), "severity": self.severity}


def _severity(severity: int) -> int:
    if severity not in (1, 2, 3, 4, 5):
        raise UserError(f"severity {severity!r}: corruptions have severities 1 to 5.")
    return severity


def _corrupt(x: Tensor, corruption: str, severity: int, generator: torch.Generator) -> Tensor:
    """Images uint8 (N, 3, H, W), corrupted and rounded as a file would hold them."""
    return corrupt(as_float(x), corruption, severity, generator=generator).mul(255.0).round_().clamp_(0, 255).to(torch.uint8)


class CorruptedImages(Dataset):
    """Images of files under a corruption, computed one by one when looked at and not kept: ImageNet's do not fit in memory.

    The noise of an image follows from ``noise_seed``, corruption, severity and its row, whatever is looked at before.
    """

    says_labels: ClassVar[bool] = True

    def __init__(self, clean: Dataset, corruption: str, severity: int, noise_seed: int) -> None:
        self.clean, self.corruption, self.severity, self.noise_seed = clean, corruption, severity, noise_seed
        self.y = labels_of(clean)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        seed = seed_of("noise", self.noise_seed, self.corruption, self.severity, int(index))
        x = torch.as_tensor(self.clean[index][0]).unsqueeze(0)
        return _corrupt(x, self.corruption, self.severity, torch.Generator().manual_seed(seed))[0], int(self.y[index])

    def digest(self) -> str:
        """16 hex digits over the clean images and what is done to them."""
        facts = (digest_of(self.clean), self.corruption, self.severity, self.noise_seed)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


class _Computed:
    """The last corrupted images of this process, by what they follow from: runs of a suite that come after one another in a
    worker compute them once. At most ``limit`` bytes; they are only read."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self._kept: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()

    def get(self, key: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        x = make()
        if x.nbytes <= self.limit:
            self._kept[key] = x
            self.size += x.nbytes
        while self.size > self.limit:
            self.size -= self._kept.popitem(last=False)[1].nbytes
        return x


_COMPUTED = _Computed(64 * 2**20)


class ComputedCorruptions(CorruptionStream):
    """Corruptions computed from clean images: of images in memory when a domain is first looked at, kept as uint8; of
    files one by one (:class:`CorruptedImages`).

    The noise of a domain follows from ``noise_seed``, the corruption's name and its severity alone: the same whatever
    the order, the other domains or the device. Computing is on the CPU, so that every device sees the same bytes.
    """

    CHUNK: ClassVar[int] = 500  # images at once: bounds the float copies, and is part of the draw

    def __init__(
        self,
        severity: int = 5,
        corruptions: str | list[str] = "standard",
        noise_seed: Seed = 0,
        order: Seed | None = None,
        test_batch_size: Count = 64,
    ) -> None:
        super().__init__(severity, corruptions, order, test_batch_size)
        self.noise_seed = noise_seed
        self._made: dict[tuple[str, int], Dataset] = {}

    def clean(self) -> Dataset:
        """The labelled clean test images."""
        raise NotImplementedError

    def corrupted(self, corruption: str, severity: int) -> Dataset:
        key = (corruption, severity)
        if key not in self._made:
            clean = self.clean()
            self._made[key] = (Deferred(lambda: self._images(corruption, severity), labels_of(clean))
                               if isinstance(clean, TensorData) else
                               CorruptedImages(clean, corruption, severity, self.noise_seed))
        return self._made[key]

    def _images(self, corruption: str, severity: int) -> Tensor:
        key = (digest_of(self.clean()), corruption, severity, self.noise_seed)
        return _COMPUTED.get(key, lambda: self._compute(corruption, severity))

    def _compute(self, corruption: str, severity: int) -> Tensor:
        clean = self.clean()
        assert isinstance(clean, TensorData)
        generator = torch.Generator().manual_seed(seed_of("noise", self.noise_seed, corruption, severity))
        chunks = clean.x.cpu().split(self.CHUNK)
        return torch.cat([_corrupt(chunk, corruption, severity, generator) for chunk in chunks])

    def protocol(self) -> Mapping[str, Any]:
        facts = {"clean": digest_of(self.clean()), "corruptions": "computed", "noise_seed": self.noise_seed}
        return {**super().protocol(), **facts}

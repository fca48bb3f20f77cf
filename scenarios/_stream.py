"""What test-time scenarios share: streams of domains, streams of corruptions, and the base of every wrapper."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cl_bench import Experience, LabelSpace, Scenario, TensorData, TestSet, UserError
from cl_bench.corruptions import EXTRA, STANDARD, corrupt
from cl_bench.data.tensor import as_float, labels_of

from ._data import Deferred, Shelf, digest_of, numbers, seed_of

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
    backbone: ClassVar[str] = "glyph_resnet"
    gives: ClassVar[frozenset[str]] = frozenset({"names", "source"})
    answers = "all"

    def __init__(self, order: int | None = None, test_batch_size: int = 64) -> None:
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
        order: int | None = None,
        test_batch_size: int = 64,
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


class ComputedCorruptions(CorruptionStream):
    """Corruptions computed from clean images when a domain is first looked at, and kept as uint8.

    The noise of a domain follows from ``noise_seed``, the corruption's name and its severity alone: the same whatever
    the order, the other domains or the device. Computing is on the CPU, so that every device sees the same bytes.
    """

    CHUNK: ClassVar[int] = 500  # images at once: bounds the float copies, and is part of the draw

    def __init__(
        self,
        severity: int = 5,
        corruptions: str | list[str] = "standard",
        noise_seed: int = 0,
        order: int | None = None,
        test_batch_size: int = 64,
    ) -> None:
        super().__init__(severity, corruptions, order, test_batch_size)
        self.noise_seed = noise_seed
        self._made: dict[tuple[str, int], Deferred] = {}

    def clean(self) -> Dataset:
        """The labelled clean test images."""
        raise NotImplementedError

    def corrupted(self, corruption: str, severity: int) -> Dataset:
        key = (corruption, severity)
        if key not in self._made:
            self._made[key] = Deferred(lambda: self._compute(corruption, severity), labels_of(self.clean()))
        return self._made[key]

    def _compute(self, corruption: str, severity: int) -> Tensor:
        clean = self.clean()
        x = clean.x if isinstance(clean, TensorData) else torch.stack([clean[i][0] for i in range(len(clean))])  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(seed_of("noise", self.noise_seed, corruption, severity))
        parts = []
        for chunk in x.cpu().split(self.CHUNK):
            y = corrupt(as_float(chunk), corruption, severity, generator=generator)
            parts.append(y.mul(255.0).round_().clamp_(0, 255).to(torch.uint8))
        return torch.cat(parts)

    def protocol(self) -> Mapping[str, Any]:
        facts = {"clean": digest_of(self.clean()), "corruptions": "computed", "noise_seed": self.noise_seed}
        return {**super().protocol(), **facts}


# ---------------------------------------------------------------------------------------------------------- wrappers
class StreamWrapper(Scenario):
    """Another arrival of the stream of ``of``; everything else is passed on.

    A subclass overrides :meth:`rearrange`. Wrappers compose: ``Recurring(Correlated(DigitsC()))`` meets the correlated
    stream again and again, drawn anew at each visit.
    """

    family: ClassVar[str] = "test-time stream"
    reorders: ClassVar[bool] = False  # True: draws an order of images, anew at every visit

    def __init__(self, of: Scenario | None = None) -> None:
        if of is None:
            from .digits_c import DigitsC

            of = DigitsC()
        if type(of).timeline is not Scenario.timeline:
            raise UserError(
                f"{type(of).__name__} interleaves learning and streaming by itself; wrap the stream it is built from."
            )
        self.of = of
        passed_on = ["gives", "answers", "reset", "test_batch_size", "max_epochs", "order", "backbone"]
        passed_on += ["label_delay", "stream_speed"]
        self.__dict__.update({key: getattr(of, key) for key in passed_on if hasattr(of, key)})
        self._shelf = Shelf(2)  # the views in use; made again from `of` when the stream comes back to them
        self._drawn: dict[int, tuple[TestSet, ...]] = {}

    # what a subclass says
    def rearrange(self, tests: Sequence[TestSet], visit: int) -> Sequence[TestSet]:
        """The new stream, from the old one; random draws depend on the seed and the number of the visit (1, 2, ...)."""
        return tests

    def drawn(self, visit: int) -> Sequence[TestSet]:
        """The stream as it is drawn at its ``visit``-th coming."""
        if visit not in self._drawn:
            self._drawn[visit] = tuple(self.rearrange(drawn(self.of, visit), visit))
        return self._drawn[visit]

    def at(self, severity: int) -> Sequence[TestSet]:
        """The stream at another severity.

        Raises:
            UserError: if what is wrapped has no severities.
        """
        return tuple(self.rearrange(at_severity(self.of, severity), 1))

    def stream(self) -> Sequence[TestSet]:
        return self.drawn(1)

    # what is passed on
    @property
    def space(self) -> LabelSpace:
        return self.of.space

    @property
    def source(self) -> Experience | None:
        return self.of.source

    def experiences(self) -> Sequence[Experience]:
        return self.of.experiences()

    def test_sets(self) -> Sequence[TestSet]:
        return self.of.test_sets()

    def space_for(self, test: TestSet, seen: LabelSpace) -> LabelSpace:
        return self.of.space_for(test, seen)

    def protocol(self) -> Mapping[str, Any]:
        inner = dict(self.of.protocol())
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        facts = {name: getattr(self, name) for name in names if name not in ("of", "seed")}
        arrival = [*inner.get("arrival", []), {"kind": type(self).__name__, **facts}]
        return {**inner, "arrival": arrival, "reset": self.reset, "test_batch_size": self.test_batch_size}


def drawn(scenario: Scenario, visit: int) -> Sequence[TestSet]:
    """The stream of ``scenario`` at its ``visit``-th coming: drawn anew where it draws at all.

    Raises:
        UserError: if it has no test-time stream.
    """
    again = getattr(scenario, "drawn", None)
    tests = scenario.stream() if again is None else again(visit)
    if not tests:
        raise UserError(f"{type(scenario).__name__} has no test-time stream to rearrange; wrap one that streams.")
    return tests


def draws(scenario: Scenario) -> bool:
    """Whether a stream is another one at each visit."""
    return isinstance(scenario, StreamWrapper) and (scenario.reorders or draws(scenario.of))


def at_severity(scenario: Scenario, severity: int) -> Sequence[TestSet]:
    """The stream of ``scenario`` at a severity.

    Raises:
        UserError: if it has no severities.
    """
    at = getattr(scenario, "at", None)
    if at is None:
        raise UserError(f"{type(scenario).__name__} has no severities; a gradual stream needs corruptions.")
    return at(severity)

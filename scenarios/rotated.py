"""Rotated digits and MNIST: every domain turns all images by another angle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import rotate

from cl_bench.ranges import Seed

from ._plain import DigitDomains, MnistDomains
from .domain_incremental import DomainAnswers
from .split_mnist import Files

__all__ = ["RotatedDigits", "RotatedMnist"]

ANGLES = (0.0, 15.0, 30.0, 45.0, 60.0, 75.0)


class RotatedDigits(DigitDomains):
    """Handwritten digits rotated by a fixed angle per experience (0 to 75 degrees in steps of 15).

    Args:
        angles: degrees, counter-clockwise, one domain each.
        order: None = as listed; an int draws another order of the domains; or a list of positions.
        answers: ``all`` (domain-incremental) or ``task`` (task-incremental).
    """

    family: ClassVar[str] = "domain-incremental"
    paper: ClassVar[str] = "Lopez-Paz & Ranzato (GEM), NeurIPS 2017; angles: Gulrajani & Lopez-Paz (DomainBed), ICLR 2021"

    def __init__(
        self,
        *,
        angles: tuple[float, ...] = ANGLES,
        order: Seed | list[int] | None = None,
        answers: DomainAnswers = "all",
    ) -> None:
        super().__init__(order=order, answers=answers)
        self.angles = tuple(float(a) for a in angles)

    def domains(self) -> tuple[str, ...]:
        return tuple(f"{a:g} degrees" for a in self.angles)

    def transform(self, x: Tensor, domain: str) -> Tensor:
        return rotated(x, domain)

    def protocol(self) -> Mapping[str, Any]:
        return {**super().protocol(), "transform": "rotation, bilinear"}


class RotatedMnist(MnistDomains):
    """MNIST rotated by a fixed angle per experience (0 to 75 degrees in steps of 15).

    Args:
        root, files: as in ``split_mnist``.
        angles: degrees, counter-clockwise, one domain each.
        order: None = as listed; an int draws another order of the domains; or a list of positions.
        answers: ``all`` (domain-incremental) or ``task`` (task-incremental).
    """

    family: ClassVar[str] = "domain-incremental"
    paper: ClassVar[str] = "Lopez-Paz & Ranzato (GEM), NeurIPS 2017; angles: Gulrajani & Lopez-Paz (DomainBed), ICLR 2021"

    def __init__(
        self,
        *,
        root: str = "data/mnist",
        files: Files = "all",
        angles: tuple[float, ...] = ANGLES,
        order: Seed | list[int] | None = None,
        answers: DomainAnswers = "all",
    ) -> None:
        super().__init__(order=order, answers=answers)
        self.root, self.files, self.angles = root, files, tuple(float(a) for a in angles)

    def domains(self) -> tuple[str, ...]:
        return tuple(f"{a:g} degrees" for a in self.angles)

    def transform(self, x: Tensor, domain: str) -> Tensor:
        return rotated(x, domain)

    def protocol(self) -> Mapping[str, Any]:
        return {**super().protocol(), "transform": "rotation, bilinear"}


def rotated(x: Tensor, domain: str) -> Tensor:
    """Images turned about their centre by the angle in the domain's name; what comes in from outside is black."""
    return rotate(x, float(domain.split()[0]), interpolation=InterpolationMode.BILINEAR)

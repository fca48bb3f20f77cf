"""Coloured digits and MNIST: every domain draws ink and ground in two other colours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from cl_bench.ranges import Seed

from ._plain import DigitDomains, MnistDomains
from .domain_incremental import DomainAnswers
from .split_mnist import Files

__all__ = ["ColouredDigits", "ColouredMnist"]

# (ink, ground) in RGB; brightness order flips between domains, so no single threshold reads them all
COLOURS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "white on black": ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)),
    "red on black": ((0.9, 0.1, 0.1), (0.0, 0.0, 0.0)),
    "green on blue": ((0.2, 0.8, 0.2), (0.1, 0.1, 0.5)),
    "yellow on purple": ((1.0, 0.9, 0.1), (0.4, 0.1, 0.5)),
    "blue on white": ((0.1, 0.2, 0.8), (1.0, 1.0, 1.0)),
    "black on orange": ((0.0, 0.0, 0.0), (1.0, 0.6, 0.1)),
}


class ColouredDigits(DigitDomains):
    """Handwritten digits in six pairs of ink and ground colour, one pair per experience.

    Colour says nothing of the class here: it is a shift of domain, not the spurious cue of IRM's Coloured MNIST.

    Args:
        order: None = as listed; an int draws another order of the domains; or a list of positions.
        answers: ``all`` (domain-incremental) or ``task`` (task-incremental).
    """

    family: ClassVar[str] = "domain-incremental"
    paper: ClassVar[str] = "after Arjovsky et al. (IRM), 2019, and Gulrajani & Lopez-Paz (DomainBed), ICLR 2021"

    def __init__(self, *, order: Seed | list[int] | None = None, answers: DomainAnswers = "all") -> None:
        super().__init__(order=order, answers=answers)

    def domains(self) -> tuple[str, ...]:
        return tuple(COLOURS)

    def transform(self, x: Tensor, domain: str) -> Tensor:
        return coloured(x, domain)

    def protocol(self) -> Mapping[str, Any]:
        return {**super().protocol(), "colours": [COLOURS[d] for d in self.domains()]}


class ColouredMnist(MnistDomains):
    """MNIST in six pairs of ink and ground colour, one pair per experience.

    Args:
        root, files: as in ``split_mnist``.
        order: None = as listed; an int draws another order of the domains; or a list of positions.
        answers: ``all`` (domain-incremental) or ``task`` (task-incremental).
    """

    family: ClassVar[str] = "domain-incremental"
    paper: ClassVar[str] = "after Arjovsky et al. (IRM), 2019, and Gulrajani & Lopez-Paz (DomainBed), ICLR 2021"

    def __init__(
        self,
        *,
        root: str = "data/mnist",
        files: Files = "all",
        order: Seed | list[int] | None = None,
        answers: DomainAnswers = "all",
    ) -> None:
        super().__init__(order=order, answers=answers)
        self.root, self.files = root, files

    def domains(self) -> tuple[str, ...]:
        return tuple(COLOURS)

    def transform(self, x: Tensor, domain: str) -> Tensor:
        return coloured(x, domain)

    def protocol(self) -> Mapping[str, Any]:
        return {**super().protocol(), "colours": [COLOURS[d] for d in self.domains()]}


def coloured(x: Tensor, domain: str) -> Tensor:
    """Grey images as a blend from the domain's ground (0) to its ink (1)."""
    ink, ground = (torch.tensor(c).view(1, 3, 1, 1) for c in COLOURS[domain])
    return ground + (ink - ground) * x.mean(1, keepdim=True)

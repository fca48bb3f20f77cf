"""Permuted digits and MNIST: every domain shuffles the pixels of all images by a fixed permutation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from cl_bench.ranges import Seed, Size

from ._data import numbers
from ._plain import DigitDomains, MnistDomains
from .domain_incremental import DomainAnswers
from .split_mnist import Files

__all__ = ["PermutedDigits", "PermutedMnist"]


class PermutedDigits(DigitDomains):
    """Handwritten digits under five fixed pixel permutations, the first being none.

    Args:
        tasks: number of permutations.
        permutation_seed: of the permutations.
        order: None = as drawn; an int draws another order of the domains; or a list of positions.
        answers: ``all`` (domain-incremental) or ``task`` (task-incremental).
    """

    family: ClassVar[str] = "domain-incremental"
    paper: ClassVar[str] = "Goodfellow et al., 2013; Kirkpatrick et al., PNAS 2017"

    def __init__(
        self,
        *,
        tasks: Size = 5,
        permutation_seed: Seed = 0,
        order: Seed | list[int] | None = None,
        answers: DomainAnswers = "all",
    ) -> None:
        super().__init__(order=order, answers=answers)
        self.tasks, self.permutation_seed = tasks, permutation_seed

    def domains(self) -> tuple[str, ...]:
        return tuple(f"permutation {k}" for k in range(self.tasks))

    def transform(self, x: Tensor, domain: str) -> Tensor:
        return permuted(x, domain, self.permutation_seed)

    def protocol(self) -> Mapping[str, Any]:
        return {**super().protocol(), "permutation_seed": self.permutation_seed}


class PermutedMnist(MnistDomains):
    """MNIST under ten fixed pixel permutations, the first being none.

    Args:
        root, files: as in ``split_mnist``.
        tasks: number of permutations.
        permutation_seed: of the permutations.
        order: None = as drawn; an int draws another order of the domains; or a list of positions.
        answers: ``all`` (domain-incremental) or ``task`` (task-incremental).
    """

    family: ClassVar[str] = "domain-incremental"
    paper: ClassVar[str] = "Goodfellow et al., 2013; Kirkpatrick et al., PNAS 2017"

    def __init__(
        self,
        *,
        root: str = "data/mnist",
        files: Files = "all",
        tasks: Size = 10,
        permutation_seed: Seed = 0,
        order: Seed | list[int] | None = None,
        answers: DomainAnswers = "all",
    ) -> None:
        super().__init__(order=order, answers=answers)
        self.root, self.files, self.tasks, self.permutation_seed = root, files, tasks, permutation_seed

    def domains(self) -> tuple[str, ...]:
        return tuple(f"permutation {k}" for k in range(self.tasks))

    def transform(self, x: Tensor, domain: str) -> Tensor:
        return permuted(x, domain, self.permutation_seed)

    def protocol(self) -> Mapping[str, Any]:
        return {**super().protocol(), "permutation_seed": self.permutation_seed}


def permuted(x: Tensor, domain: str, seed: int) -> Tensor:
    """Pixels in the order of the domain's permutation, the same for every image and channel; number 0 is none."""
    number, pixels = int(domain.split()[1]), x.shape[-1] * x.shape[-2]
    if number == 0:
        return x
    order = torch.from_numpy(numbers("pixel permutation", seed, number).permutation(pixels))
    return x.flatten(2)[..., order].view_as(x)

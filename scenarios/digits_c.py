"""Digits-C: the fifteen corruptions of Hendrycks and Dietterich on handwritten digits that need no download."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

from torch.utils.data import Dataset

from cl_bench import Experience, LabelSpace, TestSet
from cl_bench.data.digits import DIGIT_NAMES, digits
from cl_bench.ranges import Count, Seed

from ._domains import ComputedCorruptions

__all__ = ["DigitsC"]


class DigitsC(ComputedCorruptions):
    """Corrupted handwritten digits: 15 corruptions of 359 images (32 x 32), one after another, without reset.

    Corruptions and strengths of "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations" (ICLR
    2019) at CIFAR's size, in the standard order, on scikit-learn's digits; the continual protocol of CoTTA (CVPR 2022).
    ``source`` is the clean training split (1,438 images), the one test set the clean test split: by it forgetting of
    the source is measured. Nothing reveals where one corruption ends.

    Args:
        severity: 1 to 5.
        corruptions: "standard" (15), "extra" (4), "all" (19), "rotta" (the 15 in RoTTA's order), or names.
        noise_seed: of the corruptions' own noise.
        order: None = as listed; a number draws another order of the domains.
        test_batch_size: 60 gives six adaptation steps per corruption with about six images per class in each, and the
            last batch (59) is no smaller than the others.
    """

    paper: ClassVar[str] = "Hendrycks and Dietterich, ICLR 2019; Wang et al., CVPR 2022"

    def __init__(
        self,
        severity: int = 5,
        corruptions: str | list[str] = "standard",
        noise_seed: Seed = 0,
        order: Seed | None = None,
        test_batch_size: Count = 60,
    ) -> None:
        super().__init__(severity, corruptions, noise_seed, order, test_batch_size)

    @property
    def space(self) -> LabelSpace:
        return LabelSpace(tuple(range(10)), DIGIT_NAMES)

    def clean(self) -> Dataset:
        return self._test

    @cached_property
    def _test(self) -> Dataset:
        return digits("test")

    @property
    def source(self) -> Experience | None:
        return Experience("digits", self.space, digits("train"))

    def test_sets(self) -> Sequence[TestSet]:
        return (TestSet("clean", self.space, self.clean()),)

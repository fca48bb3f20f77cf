"""Any scenario's clean test images under the common corruptions, as a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from cl_bench import Experience, LabelSpace, Scenario, TestSet, UserError
from cl_bench.data.tensor import concat

from ._domains import ComputedCorruptions

__all__ = ["Corrupted"]


class Corrupted(ComputedCorruptions):
    """The clean test sets of another scenario under corruptions, streamed after all that it learns.

    Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR
    2019. ``Corrupted(SplitDigits())`` learns the classes and then faces the corrupted test images of all of them.

    Args:
        of: a scenario with test sets; Digits-C's clean images by default.
        severity, corruptions, noise_seed, order, test_batch_size: as in ``DigitsC``.

    Raises:
        UserError: if it has no test sets, or streams by itself in between its learning.
    """

    def __init__(
        self,
        of: Scenario | None = None,
        severity: int = 5,
        corruptions: str | list[str] = "standard",
        noise_seed: int = 0,
        order: int | None = None,
        test_batch_size: int = 64,
    ) -> None:
        super().__init__(severity, corruptions, noise_seed, order, test_batch_size)
        if of is None:
            from .digits_c import DigitsC

            of = DigitsC()
        if type(of).timeline is not Scenario.timeline:
            raise UserError(f"{type(of).__name__} interleaves learning and streaming by itself; wrap what it learns.")
        self.of = of
        self.__dict__.update(gives=of.gives, max_epochs=of.max_epochs)
        self._clean: Dataset | None = None

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

    def clean(self) -> Dataset:
        if self._clean is None:
            parts = [test.data for test in self.of.test_sets()]
            if not parts:
                raise UserError(f"{type(self.of).__name__} has no test sets to corrupt.")
            self._clean = concat(parts)
        return self._clean

    def protocol(self) -> Mapping[str, Any]:
        return {**self.of.protocol(), **super().protocol()}

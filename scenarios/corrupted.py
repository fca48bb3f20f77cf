"""Any scenario's clean test images under the common corruptions, as a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from torch.utils.data import Dataset

from cl_bench import LabelSpace, Scenario, TestSet, UserError, Wrapper
from cl_bench.data.tensor import concat
from cl_bench.ranges import Seed, Whole

from ._domains import ComputedCorruptions
from ._wrapper import rearranged

__all__ = ["Corrupted"]

BATCH = 64  # of the stream, where what is wrapped has none


class Corrupted(Wrapper):
    """The clean test sets of another scenario under corruptions, streamed after all that it learns.

    Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR
    2019. ``Corrupted(SplitDigits())`` learns the classes and then faces the corrupted test images of all of them. A
    stream that ``of`` has itself gives its pace (resets, speed, late labels, batch size); its images do not come.

    Args:
        of: a scenario with test sets; Digits-C's clean images by default.
        severity, corruptions, noise_seed: as in ``DigitsC``.
        order: None = corruptions as listed; a number draws another order.
        test_batch_size: 0 = that of ``of``'s stream, or 64 where it has none.

    Raises:
        UserError: if it has no test sets, streams by itself in between its learning, or orders images of a stream that
            would be replaced.
    """

    family: ClassVar[str] = "test-time stream"
    paper: ClassVar[str] = "Hendrycks and Dietterich, ICLR 2019"
    backbone = "glyph_resnet"

    def __init__(
        self,
        of: Scenario | None = None,
        severity: int = 5,
        corruptions: str | list[str] = "standard",
        noise_seed: Seed = 0,
        order: Seed | None = None,
        test_batch_size: Whole = 0,
    ) -> None:
        if of is None:
            from .digits_c import DigitsC

            of = DigitsC()
        if of.interleaves:
            raise UserError(f"{type(of).__name__} interleaves learning and streaming by itself; wrap what it learns.")
        lost = rearranged(of)
        if lost is not None:
            name = type(lost).__name__
            raise UserError(f"{name} orders images of a stream that corrupted replaces; wrap corrupted in {name} instead.")
        super().__init__(of)
        self._stream = _CleanImages(of, severity, corruptions, noise_seed, order)
        self.severity, self.corruptions, self.noise_seed = severity, corruptions, noise_seed
        if order is not None:
            self.order = order
        self._size = test_batch_size

    @property
    def test_batch_size(self) -> int:  # type: ignore[override]
        """As given, else that of ``of``'s stream, else 64."""
        return self._size or (self.of.test_batch_size if self.of.stream() else BATCH)

    def clean(self) -> Dataset:
        """The labelled clean test images."""
        return self._stream.clean()

    def stream(self) -> Sequence[TestSet]:
        return self._stream.stream()

    @property
    def severities(self) -> tuple[int, ...]:
        return self._stream.severities

    def at(self, severity: int) -> Sequence[TestSet]:
        return self._stream.at(severity)

    def protocol(self) -> Mapping[str, Any]:
        mine = {**self._stream.protocol(), "reset": self.reset, "test_batch_size": self.test_batch_size}
        return {**self.of.protocol(), **mine}


class _CleanImages(ComputedCorruptions):
    """The corrupted images of ``of``'s clean test sets, as a stream."""

    def __init__(self, of: Scenario, severity: int, corruptions: str | list[str], noise_seed: int, order: int | None) -> None:
        super().__init__(severity, corruptions, noise_seed, order)
        self.of = of

    @property
    def space(self) -> LabelSpace:
        return self.of.space

    def clean(self) -> Dataset:
        return self._clean

    @cached_property
    def _clean(self) -> Dataset:
        parts = [test.data for test in self.of.test_sets()]
        if not parts:
            raise UserError(f"{type(self.of).__name__} has no test sets to corrupt.")
        return concat(parts)

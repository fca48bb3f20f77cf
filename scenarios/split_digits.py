"""Split-Digits: the ten digit classes, two at a time, on data that ships with scikit-learn."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch.utils.data import Dataset

from cl_bench.data.digits import DIGIT_NAMES, digits
from cl_bench.ranges import Count, LegacySeed, Whole

from .split import Answers, ClassIncremental

__all__ = ["SplitDigits"]


class SplitDigits(ClassIncremental):
    """Handwritten digits, two new classes per experience: five experiences, nothing to download."""

    family: ClassVar[str] = "class-incremental"
    paper: ClassVar[str] = "Split-MNIST protocol: Zenke et al., ICML 2017; data: Alpaydin & Kaynak, UCI optdigits, 1998"
    classes = 10

    def __init__(
        self,
        *,
        base: Whole = 0,
        increment: Count = 2,
        order: LegacySeed | list[int] | None = None,
        answers: Answers = "seen",
        per_class: Whole = 0,
    ) -> None:
        super().__init__(base=base, increment=increment, order=order, answers=answers, per_class=per_class)

    def class_names(self) -> tuple[str, ...]:
        return DIGIT_NAMES

    def load(self, part: Literal["train", "test"]) -> Dataset:
        return digits(part)

"""A scenario of your own in one file: `cl-bench check examples/my_scenario.py:EvenThenOdd`, then
`cl-bench run --scenario examples/my_scenario.py:EvenThenOdd --method ncm`.

Put your own images into `load`: uint8 (N, 3, H, W) and integer labels (N,) are all that it takes; `cl_bench.data` reads
class folders, image parquet, MNIST's and CIFAR-C's files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch

from cl_bench import Experience, LabelSpace, Scenario, TensorData, TestSet
from cl_bench.data.digits import digits

__all__ = ["EvenThenOdd"]

TASKS = {"even": (0, 2, 4, 6, 8), "odd": (1, 3, 5, 7, 9)}


def load(part: Literal["train", "test"], classes: Sequence[int], limit: int = 0) -> TensorData:
    """Images and labels of some classes, at most `limit` of each (0: all)."""
    data = digits(part)
    rows = [torch.where(data.y == c)[0][: limit or None] for c in classes]
    return TensorData(data.x[torch.cat(rows)], data.y[torch.cat(rows)])


class EvenThenOdd(Scenario):
    """Handwritten digits: the even ones, then the odd ones, answered among all classes seen so far.

    Args:
        per_class: training images of every class; 0 for all.
    """

    family: ClassVar[str] = "class-incremental"
    paper: ClassVar[str] = "none: an example to start from"

    def __init__(self, *, per_class: int = 0) -> None:
        self.per_class = per_class  # a constructor reads no data and draws no random number

    def experiences(self) -> Sequence[Experience]:
        return [Experience(name, LabelSpace(ids), load("train", ids, self.per_class)) for name, ids in TASKS.items()]

    def test_sets(self) -> Sequence[TestSet]:
        return [TestSet(name, LabelSpace(ids), load("test", ids), of=name) for name, ids in TASKS.items()]

    def protocol(self) -> Mapping[str, Any]:
        """What two runs must share to stand in one table."""
        return {"data": "optdigits", "split": {name: list(ids) for name, ids in TASKS.items()}, "per_class": self.per_class}

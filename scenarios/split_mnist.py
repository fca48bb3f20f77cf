"""Split-MNIST: the ten digit classes of MNIST, two at a time."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from torch.utils.data import Dataset

from cl_bench import TensorData, UserError
from cl_bench.data.digits import DIGIT_NAMES
from cl_bench.data.files import existing_file
from cl_bench.data.idx import read_idx_pair
from cl_bench.ranges import Count, LegacySeed, Whole

from .split import Answers, ClassIncremental

__all__ = ["SplitMnist"]

Files = Literal["all", "t10k"]
_NAMES = {"train": ("train-images", "train-labels"), "test": ("t10k-images", "t10k-labels")}


def mnist(root: str, part: Literal["train", "test"], files: Files = "all") -> TensorData:
    """MNIST from its four IDX files (plain or ``.gz``) in ``root``: 60,000 training and 10,000 test images.

    ``files="t10k"`` makes do with the 10,000 test images: 8,000 of them, by a fixed permutation, are the training data
    and 2,000 the test data; numbers on them are not comparable with published ones.

    Raises:
        UserError: if a file is missing, saying which belong where.
    """
    if files == "t10k":
        whole = _read(root, "test")
        rows = np.random.RandomState(0).permutation(len(whole))
        cut = len(whole) * 4 // 5
        return whole.subset(np.sort(rows[:cut] if part == "train" else rows[cut:]))
    return _read(root, part)


def _read(root: str, part: Literal["train", "test"]) -> TensorData:
    found = []
    for stem, kind in zip(_NAMES[part], ("idx3", "idx1"), strict=True):
        places = [Path(root).expanduser() / f"{stem}-{kind}-ubyte{end}" for end in (".gz", "")]
        there = [p for p in places if p.is_file()]
        if not there:
            raise UserError(
                f'MNIST needs "{places[0]}": put the four files train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, '
                't10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz there, or name their folder with root '
                '(with only the t10k files, set files="t10k").'
            )
        found.append(existing_file(there[0], root=root))
    return read_idx_pair(found[0], found[1], classes=10)


class SplitMnist(ClassIncremental):
    """MNIST, two new digits per experience (five experiences by default).

    Args:
        root: folder of the IDX files, ``train-images-idx3-ubyte.gz`` and so on.
        files: ``all``, or ``t10k`` to split the 10,000 test images 8,000 / 2,000 (not comparable with published numbers).
    """

    family: ClassVar[str] = "class-incremental"
    paper: ClassVar[str] = "Zenke et al., ICML 2017; data: LeCun et al., 1998"
    classes = 10

    def __init__(
        self,
        *,
        root: str = "data/mnist",
        files: Files = "all",
        base: Whole = 0,
        increment: Count = 2,
        order: LegacySeed | list[int] | None = None,
        answers: Answers = "seen",
        per_class: Whole = 0,
    ) -> None:
        super().__init__(base=base, increment=increment, order=order, answers=answers, per_class=per_class)
        self.root, self.files = root, files

    def class_names(self) -> tuple[str, ...]:
        return DIGIT_NAMES

    def load(self, part: Literal["train", "test"]) -> Dataset:
        return mnist(self.root, part, self.files)

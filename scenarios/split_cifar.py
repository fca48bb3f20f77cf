"""Split-CIFAR-10 and Split-CIFAR-100, from torchvision's files or parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from torch.utils.data import Dataset

from cl_bench import TensorData, UserError
from cl_bench.data.parquet import read_parquet
from cl_bench.data.vision import torchvision_data
from cl_bench.ranges import Count, LegacySeed, Whole
from cl_bench.types import Transform

from ._augment import CropFlip
from .split import Answers, ClassIncremental

__all__ = ["SplitCifar10", "SplitCifar100"]


def cifar(name: Literal["CIFAR10", "CIFAR100"], root: str, part: str) -> TensorData:
    """CIFAR from ``root``: either parquet files ``train-*.parquet`` and ``test-*.parquet`` (the hub's columns image or img,
    and label, for CIFAR-100 fine_label) or torchvision's folder ``cifar-10-batches-py`` / ``cifar-100-python``.

    Raises:
        UserError: if neither is there.
    """
    where = Path(root).expanduser()
    if shards := sorted(where.glob(f"{part}-*.parquet")):
        label, classes = (("label",), 10) if name == "CIFAR10" else (("fine_label", "label"), 100)
        return read_parquet(shards, label=label, classes=classes).data
    folder = "cifar-10-batches-py" if name == "CIFAR10" else "cifar-100-python"
    if not (where / folder).is_dir():
        raise UserError(
            f'{name} needs "{where / folder}" (unpack the python version there) or "{where}/{part}-*.parquet"; '
            "put it there, or name its folder with root."
        )
    return torchvision_data(name, where, part).data  # type: ignore[arg-type]


class SplitCifar10(ClassIncremental):
    """CIFAR-10, two new classes per experience (five experiences by default).

    Args:
        root: folder that holds ``cifar-10-batches-py`` or ``train-*.parquet`` and ``test-*.parquet``.
        augmented: random crop and flip of training images.
    """

    family: ClassVar[str] = "class-incremental"
    paper: ClassVar[str] = "Zenke et al., ICML 2017; Buzzega et al., NeurIPS 2020; data: Krizhevsky, 2009"
    classes = 10

    def __init__(
        self,
        *,
        root: str = "data/cifar10",
        base: Whole = 0,
        increment: Count = 2,
        order: LegacySeed | list[int] | None = None,
        answers: Answers = "seen",
        per_class: Whole = 0,
        augmented: bool = True,
    ) -> None:
        super().__init__(base=base, increment=increment, order=order, answers=answers, per_class=per_class)
        self.root, self.augmented = root, augmented

    def class_names(self) -> tuple[str, ...]:
        return ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def augment(self) -> Transform | None:
        return CropFlip() if self.augmented else None

    def load(self, part: Literal["train", "test"]) -> Dataset:
        return cifar("CIFAR10", self.root, part)


class SplitCifar100(ClassIncremental):
    """CIFAR-100, ten new classes per experience ("B0 Inc10"); ``order=1993`` is the papers' class order.

    Args:
        root: folder that holds ``cifar-100-python`` or ``train-*.parquet`` and ``test-*.parquet`` (column fine_label).
        augmented: random crop and flip of training images.
    """

    family: ClassVar[str] = "class-incremental"
    paper: ClassVar[str] = "Rebuffi et al. (iCaRL), CVPR 2017; data: Krizhevsky, 2009"
    classes = 100

    def __init__(
        self,
        *,
        root: str = "data/cifar100",
        base: Whole = 0,
        increment: Count = 10,
        order: LegacySeed | list[int] | None = 1993,
        answers: Answers = "seen",
        per_class: Whole = 0,
        augmented: bool = True,
    ) -> None:
        super().__init__(base=base, increment=increment, order=order, answers=answers, per_class=per_class)
        self.root, self.augmented = root, augmented

    def augment(self) -> Transform | None:
        return CropFlip() if self.augmented else None

    def load(self, part: Literal["train", "test"]) -> Dataset:
        return cifar("CIFAR100", self.root, part)

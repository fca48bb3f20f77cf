"""Split-CIFAR-10 and Split-CIFAR-100, from torchvision's files or parquet files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from cl_bench import TensorData, UserError
from cl_bench.data.files import existing_file
from cl_bench.data.parquet import read_parquet
from cl_bench.data.vision import torchvision_data
from cl_bench.ranges import Count, LegacySeed, Pixels, Whole
from cl_bench.types import Transform

from ._augment import CropFlip, ResizedCropFlip
from ._data import digest_of
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
        return read_parquet([existing_file(s, root=where) for s in shards], label=label, classes=classes).data
    folder = "cifar-10-batches-py" if name == "CIFAR10" else "cifar-100-python"
    if not (where / folder).is_dir():
        raise UserError(
            f'{name} needs "{where / folder}" (unpack the python version there) or "{where}/{part}-*.parquet"; '
            "put it there, or name its folder with root."
        )
    return torchvision_data(name, where, part).data  # type: ignore[arg-type]


class Enlarged(Dataset):
    """Images resized by their short side (bicubic, antialiased) and cropped at their centre when they are read."""

    says_labels: ClassVar[bool] = True

    def __init__(self, data: TensorData, size: int, resize: int) -> None:
        self.data, self.y, self.size, self.resize = data, data.y, size, resize

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x = self.data.x[index].unsqueeze(0).float()
        x = F.interpolate(x, size=(self.resize, self.resize), mode="bicubic", antialias=True).round_().clamp_(0, 255)
        cut = (self.resize - self.size) // 2
        return x[0, :, cut : cut + self.size, cut : cut + self.size].to(torch.uint8), int(self.y[index])

    def digest(self) -> str:
        """16 hex digits over the images and how they are enlarged."""
        return hashlib.sha256(f"{digest_of(self.data)}/{self.size}/{self.resize}".encode()).hexdigest()[:16]


def enlarged(data: TensorData, size: int | None, resize: int) -> Dataset:
    """``data`` enlarged, or as it is where no size is given."""
    return data if size is None else Enlarged(data, size, resize)


def check_sizes(size: int | None, resize: int) -> None:
    """Refuse a crop that is larger than what it is cut from."""
    if size is not None and resize < size:
        raise UserError(f"resize={resize} is smaller than the image size {size}: give 1 <= size <= resize.")


def augmentation(size: int | None) -> Transform:
    """The standard one of CIFAR at its own size, LAMDA-PILOT's where images are enlarged."""
    return CropFlip() if size is None else ResizedCropFlip()


class SplitCifar10(ClassIncremental):
    """CIFAR-10, two new classes per experience (five experiences by default).

    Args:
        root: folder that holds ``cifar-10-batches-py`` or ``train-*.parquet`` and ``test-*.parquet``.
        size, resize: enlarge images when they are read, short side to ``resize`` (bicubic) and centre crop to ``size``, as
            LAMDA-PILOT does (256 and 224); None leaves them at 32 pixels.
        augmented: random crop and flip of training images; of enlarged ones a random resized crop.
    """

    family: ClassVar[str] = "class-incremental"
    paper: ClassVar[str] = "Zenke et al., ICML 2017; Buzzega et al., NeurIPS 2020; data: Krizhevsky, 2009"
    classes = 10
    subject = "photographs"

    def __init__(
        self,
        *,
        root: str = "data/cifar10",
        base: Whole = 0,
        increment: Count = 2,
        order: LegacySeed | list[int] | None = None,
        answers: Answers = "seen",
        per_class: Whole = 0,
        size: Pixels | None = None,
        resize: Pixels = 256,
        augmented: bool = True,
    ) -> None:
        super().__init__(base=base, increment=increment, order=order, answers=answers, per_class=per_class)
        self.root, self.size, self.resize, self.augmented = root, size, resize, augmented
        check_sizes(size, resize)

    def class_names(self) -> tuple[str, ...]:
        return ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def augment(self) -> Transform | None:
        return augmentation(self.size) if self.augmented else None

    def load(self, part: Literal["train", "test"]) -> Dataset:
        return enlarged(cifar("CIFAR10", self.root, part), self.size, self.resize)


class SplitCifar100(ClassIncremental):
    """CIFAR-100, ten new classes per experience ("B0 Inc10"); ``order=1993`` is the papers' class order.

    Args:
        root: folder that holds ``cifar-100-python`` or ``train-*.parquet`` and ``test-*.parquet`` (column fine_label).
        size, resize: enlarge images when they are read, short side to ``resize`` (bicubic) and centre crop to ``size``, as
            LAMDA-PILOT does (256 and 224); None leaves them at 32 pixels.
        augmented: random crop and flip of training images; of enlarged ones a random resized crop.
    """

    family: ClassVar[str] = "class-incremental"
    paper: ClassVar[str] = "Rebuffi et al. (iCaRL), CVPR 2017; data: Krizhevsky, 2009"
    classes = 100
    subject = "photographs"

    def __init__(
        self,
        *,
        root: str = "data/cifar100",
        base: Whole = 0,
        increment: Count = 10,
        order: LegacySeed | list[int] | None = 1993,
        answers: Answers = "seen",
        per_class: Whole = 0,
        size: Pixels | None = None,
        resize: Pixels = 256,
        augmented: bool = True,
    ) -> None:
        super().__init__(base=base, increment=increment, order=order, answers=answers, per_class=per_class)
        self.root, self.size, self.resize, self.augmented = root, size, resize, augmented
        check_sizes(size, resize)

    def augment(self) -> Transform | None:
        return augmentation(self.size) if self.augmented else None

    def load(self, part: Literal["train", "test"]) -> Dataset:
        return enlarged(cifar("CIFAR100", self.root, part), self.size, self.resize)

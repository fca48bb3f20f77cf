"""Class-incremental splits of data sets that lie as folders of images: ImageNet-R and -A, CUB-200, ObjectNet, OmniBenchmark,
VTAB (in the re-splits that LAMDA-PILOT's authors published) and Tiny-ImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from torch.utils.data import Dataset

from cl_bench import UserError
from cl_bench.data.files import below, brief, existing_folder
from cl_bench.data.folder import ImageFiles, Listing, class_dirs, images_below, in_folders, loose_images
from cl_bench.data.lists import lines_of, one_label
from cl_bench.ranges import Count, LegacySeed, Pixels, Whole
from cl_bench.types import Transform

from ._augment import ResizedCropFlip
from ._files import listed, same_classes
from .split import Answers, ClassIncremental

__all__ = [
    "SplitCub200", "SplitImagenetA", "SplitImagenetR", "SplitObjectnet", "SplitOmnibenchmark", "SplitTinyImagenet",
    "SplitVtab",
]


class FolderSplit(ClassIncremental):
    """Classes are the folders of ``<root>/train`` in order of name (as torchvision's ImageFolder numbers them), and
    ``<root>/test`` has the same. Images: short side to ``resize``, centre crop to ``size``; in training also a random
    resized crop (scale 0.05 to 1) and a flip.

    Args:
        root: the data set's folder.
        size, resize: pixels.
        augmented: random crop and flip of training images.
    """

    tests: ClassVar[str] = "test"
    layout: ClassVar[str] = "train/<class>/<image> and test/<class>/<image>"
    readable: ClassVar[bool] = False  # folder names are the classes' names
    subject = "photographs"

    def __init__(
        self,
        *,
        root: str = "",
        base: Whole = 0,
        increment: Count = 10,
        order: LegacySeed | list[int] | None = 1993,
        answers: Answers = "seen",
        per_class: Whole = 0,
        size: Pixels = 224,
        resize: Pixels = 256,
        augmented: bool = True,
    ) -> None:
        super().__init__(base=base, increment=increment, order=order, answers=answers, per_class=per_class)
        self.root, self.size, self.resize, self.augmented = root, size, resize, augmented

    def folder(self, part: str) -> Path:
        """The folder of a part.

        Raises:
            UserError: if it is missing, with the layout.
        """
        if not self.root:
            raise UserError(f"{type(self).__name__} needs its data: set root to a folder that holds {self.layout}.")
        return existing_folder(Path(self.root) / part, f"set root to a folder that holds {self.layout}.", self.root)

    def folders(self) -> list[str]:
        """Names of the class folders, by class id."""
        return self._folders

    @cached_property
    def _folders(self) -> list[str]:
        return class_dirs(self.folder("train"), Path(self.root))

    def number_of_classes(self) -> int:
        return len(self.folders())

    def class_names(self) -> tuple[str, ...]:
        if not self.readable:
            return ()
        return tuple(n.partition(".")[2].replace("_", " ") if "." in n else n.replace("_", " ") for n in self.folders())

    def augment(self) -> Transform | None:
        return ResizedCropFlip() if self.augmented else None

    def load(self, part: Literal["train", "test"]) -> Dataset:
        where = self.folder("train" if part == "train" else self.tests)
        return ImageFiles(lambda: self.listing(part, where), Path(self.root), self.size, self.resize)

    def listing(self, part: Literal["train", "test"], where: Path) -> Listing:
        """Paths and labels of a part."""
        missing = set(self._differ(where)[0]) if part == "test" else set()
        return in_folders(where, {name: k for k, name in enumerate(self.folders()) if name not in missing}, Path(self.root))

    def _differ(self, where: Path) -> tuple[list[str], list[str]]:
        return same_classes(self.folders(), class_dirs(where, Path(self.root)), "train", where.name)

    def notes(self) -> Sequence[str]:
        return [*super().notes(), *self.beside()]

    def beside(self) -> list[str]:
        """What lies in the folders and is not read, counted."""
        out, where = [], self.folder(self.tests)
        extra = self._differ(where)[1]
        if extra:
            count = sum(len(images_below(where / name, Path(self.root))) for name in extra)
            out.append(f"{count} images of classes that only the test folder has are left out: {listed(extra)}.")
        for part in (self.folder("train"), where):
            if loose := loose_images(part):
                out.append(f"{loose} images of {part.name} lie in no class folder and are left out.")
        return out


class SplitImagenetR(FolderSplit):
    """ImageNet-R, 200 classes of renditions, ten new classes per experience (24,000 / 6,000 images).

    At least four incompatible train/test splits of it exist; this is whatever lies in ``train`` and ``test`` (the file
    list is part of the record's digest). The papers' is the re-split published with LAMDA-PILOT.
    """

    family: ClassVar[str] = "class-incremental"
    paper: ClassVar[str] = "Hendrycks et al., ICCV 2021; split: Zhou et al. (APER), IJCV 2024"


class SplitImagenetA(FolderSplit):
    """ImageNet-A, 200 classes of natural adversarial images, ten new classes per experience (5,981 / 1,519 images)."""

    family: ClassVar[str] = "class-incremental"
    paper: ClassVar[str] = "Hendrycks et al., CVPR 2021; split: Zhou et al. (APER), IJCV 2024"


class SplitCub200(FolderSplit):
    """CUB-200-2011 birds, ten new classes per experience (9,430 / 2,358 images)."""

    name: ClassVar[str] = "split_cub200"
    family: ClassVar[str] = "class-incremental"
    paper: ClassVar[str] = "Wah et al., 2011; split: Zhou et al. (APER), IJCV 2024"
    readable: ClassVar[bool] = True


class SplitObjectnet(FolderSplit):
    """ObjectNet, a 200-class subset, ten new classes per experience (26,509 / 6,628 images)."""

    family: ClassVar[str] = "class-incremental"
    paper: ClassVar[str] = "Barbu et al., NeurIPS 2019; split: Zhou et al. (APER), IJCV 2024"
    readable: ClassVar[bool] = True


class SplitOmnibenchmark(FolderSplit):
    """OmniBenchmark, a 300-class subset, thirty new classes per experience (89,697 / 5,985 images)."""

    family: ClassVar[str] = "class-incremental"
    paper: ClassVar[str] = "Zhang et al., ECCV 2022; split: Zhou et al. (APER), IJCV 2024"

    def __init__(
        self,
        *,
        root: str = "",
        base: Whole = 0,
        increment: Count = 30,
        order: LegacySeed | list[int] | None = 1993,
        answers: Answers = "seen",
        per_class: Whole = 0,
        size: Pixels = 224,
        resize: Pixels = 256,
        augmented: bool = True,
    ) -> None:
        super().__init__(root=root, base=base, increment=increment, order=order, answers=answers, per_class=per_class,
                         size=size, resize=resize, augmented=augmented)


class SplitVtab(FolderSplit):
    """VTAB, five data sets of ten classes each, one data set per experience, in natural order (1,796 / 8,619 images)."""

    family: ClassVar[str] = "class-incremental"
    paper: ClassVar[str] = "Zhai et al., 2019; split: Zhou et al. (APER), IJCV 2024"

    def __init__(
        self,
        *,
        root: str = "",
        base: Whole = 0,
        increment: Count = 10,
        order: LegacySeed | list[int] | None = None,
        answers: Answers = "seen",
        per_class: Whole = 0,
        size: Pixels = 224,
        resize: Pixels = 256,
        augmented: bool = True,
    ) -> None:
        super().__init__(root=root, base=base, increment=increment, order=order, answers=answers, per_class=per_class,
                         size=size, resize=resize, augmented=augmented)


class SplitTinyImagenet(FolderSplit):
    """Tiny-ImageNet, 200 classes of 64 x 64 images, ten new classes per experience (100,000 / 10,000 images).

    ``root`` is the published folder ``tiny-imagenet-200``: ``train/<wnid>/images/*.JPEG``, and the validation images,
    which serve as the test set because test labels were never published, in ``val/images`` with
    ``val/val_annotations.txt``.
    """

    family: ClassVar[str] = "class-incremental"
    paper: ClassVar[str] = "Le & Yang, CS 231N, 2015"
    tests: ClassVar[str] = "val"
    layout: ClassVar[str] = "train/<wnid>/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt"

    def __init__(
        self,
        *,
        root: str = "",
        base: Whole = 0,
        increment: Count = 10,
        order: LegacySeed | list[int] | None = 1993,
        answers: Answers = "seen",
        per_class: Whole = 0,
        size: Pixels = 64,
        resize: Pixels = 64,
        augmented: bool = True,
    ) -> None:
        super().__init__(root=root, base=base, increment=increment, order=order, answers=answers, per_class=per_class,
                         size=size, resize=resize, augmented=augmented)

    def listing(self, part: Literal["train", "test"], where: Path) -> Listing:
        if part == "train":
            return super().listing(part, where)
        label = {name: k for k, name in enumerate(self.folders())}
        files, labels, listing = [], [], where / "val_annotations.txt"
        given: dict[Path, int] = {}
        for number, line in enumerate(lines_of(listing, Path(self.root)), 1):
            fields = line.split()
            if len(fields) < 2 or fields[1] not in label:
                raise UserError(f'line {number} of "{listing}" is {brief(line)!r}; expected file and wnid.')
            path = below(where / "images", fields[0], f'line {number} of "{listing}"')
            one_label(given, path, label[fields[1]], f'line {number} of "{listing}"')
            files.append(path)
            labels.append(label[fields[1]])
        return files, labels

    def beside(self) -> list[str]:
        return []

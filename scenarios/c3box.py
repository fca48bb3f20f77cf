"""Class-incremental learning of models that read class names, as the toolbox C3Box runs it: nine data sets."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cl_bench import LabelSpace, UserError
from cl_bench.data.classes import CIFAR100
from cl_bench.data.files import existing_file, existing_folder
from cl_bench.data.folder import ImageFiles, class_dirs, in_folders
from cl_bench.data.pixels import rgb_picture
from cl_bench.ranges import Count, LegacySeed, Pixels, Whole
from cl_bench.types import takes_name

from ._files import need_root, same_classes
from ._vlm_words import C3BOX
from .split import Answers, ClassIncremental
from .split_cifar import cifar, enlarged

__all__ = ["C3box"]

Sets = Literal["cifar224", "aircraft", "cars", "cub200", "food101", "imagenetr", "objectnet", "sun", "ucf101"]
LAYOUT = "train/<class>/<image> and val/<class>/<image>"


class C3box(ClassIncremental):
    """CLIP's class-incremental protocol on CIFAR-100, Aircraft, Cars, CUB, Food, ImageNet-R, ObjectNet, SUN or UCF.

    Sun and Zhou, "C3Box: A CLIP-based Class-Incremental Learning Toolbox", 2026, arXiv 2601.20852 (LAMDA-CL/C3Box), whose
    subsets, names, sentences and orders are those of PROOF and ENGINE: classes by numpy's RandomState(1993), answers among
    all classes seen, images squashed to a square (bicubic) in training as in testing, no augmentation. Training reads the
    first sentence of a data set; an answer is the mean over all of them.

    Args:
        data: the data set, by the toolbox's name.
        root: its folder, with ``train/<class>/<image>`` and ``val/<class>/<image>``; of cifar224 that of ``split_cifar100``.
        names: JSON file of class names as the toolbox keeps it (``utils/labels.json``: lists by data set, in the order of
            the class folders); "" = the folders' own names, of cifar224 CIFAR-100's.
        sentences: in the place of the data set's own; each has {} where the name goes.
        size: side of the images in pixels.
    """

    name: ClassVar[str] = "c3box"
    family: ClassVar[str] = "vision-language"
    paper: ClassVar[str] = "Sun & Zhou (C3Box), arXiv 2601.20852; Zhou et al. (PROOF), TPAMI 2025"
    places: ClassVar[frozenset[str]] = frozenset({"names"})
    subject = "photographs"

    def __init__(
        self,
        *,
        data: Sets = "cifar224",
        root: str = "",
        names: str = "",
        base: Whole = 0,
        increment: Count = 10,
        order: LegacySeed | list[int] | None = 1993,
        answers: Answers = "seen",
        per_class: Whole = 0,
        sentences: list[str] | None = None,
        size: Pixels = 224,
    ) -> None:
        super().__init__(base=base, increment=increment, order=order, answers=answers, per_class=per_class)
        if wrong := [s for s in sentences or () if not takes_name(s)]:
            raise UserError(f'the sentence "{wrong[0]}" has no place for a name: put one {{}} there, and no other brace.')
        self._root = need_root(root, "c3box", "CIFAR-100" if data == "cifar224" else LAYOUT)
        self.data, self.root, self.names, self.sentences, self.size = data, root, names, sentences, size

    def number_of_classes(self) -> int:
        return 100 if self.data == "cifar224" else len(self._folders)

    @cached_property
    def _folders(self) -> list[str]:
        return class_dirs(self._folder("train"), self._root)

    def _folder(self, part: str) -> Path:
        return existing_folder(self._root / part, f"set root to a folder that holds {LAYOUT}.", self.root)

    def class_names(self) -> tuple[str, ...]:
        return self._words

    @cached_property
    def _words(self) -> tuple[str, ...]:
        own = CIFAR100 if self.data == "cifar224" else tuple(re.sub(r"^\d+\.", "", n) for n in self._folders)
        if self.names:
            own = named_in(self.names, self.data, self.number_of_classes())
        return tuple(n.replace("_", " ") for n in own)

    # ------------------------------------------------------------------ sentences belong to every label space
    @property
    def space(self) -> LabelSpace:
        return self._told(super().space)

    def groups(self) -> list[LabelSpace]:
        return [self._told(g) for g in super().groups()]

    def _told(self, space: LabelSpace) -> LabelSpace:
        return LabelSpace(space.ids, space.names, tuple(self.sentences or C3BOX[self.data]))

    def load(self, part: Literal["train", "test"]) -> Dataset:
        if self.data == "cifar224":
            return enlarged(cifar("CIFAR100", self.root, part), self.size, self.size)
        where = self._folder("train" if part == "train" else "val")
        if part == "test":
            same_classes(self._folders, class_dirs(where, self._root), "train", "val")
        classes = {name: k for k, name in enumerate(self._folders)}
        return Squashed(lambda: in_folders(where, classes, self._root), self._root, self.size, self.size)

    def protocol(self) -> Mapping[str, Any]:
        told = {"names": [*self.class_names()], "templates": [*(self.sentences or C3BOX[self.data])], "size": self.size}
        return {**super().protocol(), **told, "shape": "squashed"}


class Squashed(ImageFiles):
    """Image files, both sides resized to ``size`` whatever their ratio (bicubic)."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL.Image import Resampling

        file = self.files[index]
        picture = rgb_picture(file, f'"{file}"').resize((self.size, self.size), Resampling.BICUBIC)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous(), int(self.y[index])

    def digest(self) -> str:
        """16 hex digits over the files and their shape."""
        return hashlib.sha256(f"squashed {super().digest()}".encode()).hexdigest()[:16]


def named_in(file: str, data: str, classes: int) -> tuple[str, ...]:
    """The names of a data set's classes, from the toolbox's file.

    Raises:
        UserError: it is missing or of another form, or names fewer classes than there are.
    """
    where: Path = existing_file(file, "it is utils/labels.json of the toolbox.")
    try:
        held = json.loads(where.read_text(encoding="utf-8"))[data]
        found = tuple(n for n in held if isinstance(n, str) and n.strip())
    except (ValueError, KeyError, TypeError) as fault:
        raise UserError(f'"{where}" has no list of names under "{data}": take utils/labels.json of the toolbox.') from fault
    if len(found) < classes:
        raise UserError(f'"{where}" names {len(found)} classes of {data} where the folders are {classes}: is it the subset '
                        "that the toolbox publishes?")
    return found[:classes]

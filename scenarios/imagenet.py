"""ImageNet's validation images, clean."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

from cl_bench import TestSet, UserError
from cl_bench.data.lists import lines_of
from cl_bench.ranges import Count, Pixels, Seed

from ._files import listed, shuffled
from .domains import ImageNetR

__all__ = ["ImageNet"]


class ImageNet(ImageNetR):
    """ImageNet-1k's validation images, clean; under ``corrupted`` they are ImageNet-C, computed as they are looked at.

    Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015. Layout: ``<wnid>/<image>`` below
    ``root``, the validation set sorted into its 1,000 class folders (or some of them).
    ``--scenario corrupted --scenario.of imagenet --scenario.of.root FOLDER`` streams its corruptions.

    Args:
        root: folder of one folder of images per class.
        class_list: the 1,000 classes in label order (see ``imagenet_r``); "" = class folders in order of name, which is
            the same where all 1,000 are there, and refused where they are not.
        only: text file with one class folder per line: a subset, such as ImageNet-100 or the 200 classes of ImageNet-R;
            labels stay those of the 1,000. "" = all.
        names, shuffle, seed, resize, clean_root, test_batch_size: as in ``imagenet_r``.
    """

    name: ClassVar[str] = "imagenet"
    paper: ClassVar[str] = "Russakovsky et al., IJCV 2015"
    places: ClassVar[frozenset[str]] = frozenset({"class_list", "only"})
    subset: ClassVar[bool] = False

    def __init__(
        self,
        root: str = "",
        class_list: str = "",
        only: str = "",
        names: bool = False,
        shuffle: bool = True,
        seed: Seed = 0,
        resize: Pixels = 256,
        clean_root: str = "",
        test_batch_size: Count = 64,
    ) -> None:
        super().__init__(root, class_list, names, shuffle, seed, resize, clean_root, test_batch_size)
        self.only = only

    @cached_property
    def _classes(self) -> tuple[dict[str, int], tuple[str, ...]]:
        labels, names = super()._classes
        if not self.only:
            return labels, names
        wanted = lines_of(self.only)
        if missing := sorted(set(wanted) - set(labels)):
            raise UserError(f'"{self.only}" names the classes {listed(missing)}, which "{self._where}" has not: give names of '
                            "its folders.")
        return {name: label for name, label in labels.items() if name in set(wanted)}, names

    def test_sets(self) -> Sequence[TestSet]:
        return self._clean

    @cached_property
    def _clean(self) -> tuple[TestSet, ...]:
        """In the order that was asked for: of class after class, batch statistics would tell of the order alone."""
        clean = TestSet("clean", self.space, self.images(self.name))
        return (shuffled(clean, self.seed, "clean"),) if self.shuffle else (clean,)

"""ImageNet-C and ImageNet-3DCC from their folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch.utils.data import Dataset

from cl_bench import Experience, LabelSpace, TestSet, UserError
from cl_bench.data.classes import called
from cl_bench.data.folder import ImageFiles, Listing, class_dirs, in_folders
from cl_bench.data.lists import in_list
from cl_bench.ranges import Count, Pixels, Seed

from ._data import digest_of
from ._domains import CorruptionStream
from ._files import given, imagenet_labels, imagenet_source, listed, need_root, short_list, shuffled

__all__ = ["ImageNet3DCC", "ImageNetC"]


class ImageNetC(CorruptionStream):
    """ImageNet-C: 15 corruptions of the ImageNet validation images at one severity, without reset.

    Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR
    2019 (Zenodo 2235448).

    Args:
        root: folder of ``<corruption>/<severity>/<class>/*.JPEG``.
        image_list: text file with one ``class/file`` per line, in order: the 5,000 images that robustbench, CoTTA and
            most tables use (robustbench's imagenet_test_image_ids.txt). "" = all 50,000.
        class_list: the 1,000 classes in label order (see ``imagenet_r``); "" = class folders in order of name, which is
            the same where all 1,000 are there, and refused where they are not.
        names: reveal the names of ``class_list``.
        severity: 1 to 5.
        corruptions: "standard", "extra", "all", "rotta", or names.
        shuffle: random order within each domain; False keeps that of ``image_list``, or one class after another.
        seed: of these orders, one per domain.
        resize: short side before the centre crop to 224. The files are 224 x 224 already, and 224 takes them as they
            are; 256 repeats a detour of some CoTTA-era loaders that shifts errors by points.
        clean_root: folder of ImageNet's training images, one folder per class; gives ``source``, the classes of the stream
            alone, short side 256. "" = no source.
        order: None = as listed; a number draws another order of the domains.
        test_batch_size: 64 as published.
    """

    name: ClassVar[str] = "imagenet_c"
    paper: ClassVar[str] = "Hendrycks and Dietterich, ICLR 2019"
    places: ClassVar[frozenset[str]] = frozenset({"image_list", "class_list"})
    subject = "photographs"

    def __init__(
        self,
        root: str = "",
        image_list: str = "",
        class_list: str = "",
        names: bool = False,
        severity: int = 5,
        corruptions: str | list[str] = "standard",
        shuffle: bool = True,
        seed: Seed = 0,
        resize: Pixels = 224,
        clean_root: str = "",
        order: Seed | None = None,
        test_batch_size: Count = 64,
    ) -> None:
        super().__init__(severity, corruptions, order, test_batch_size)
        self._where = need_root(root, type(self).__name__, "<corruption>/<severity>/<class>/*.JPEG")
        self.root, self.image_list, self.class_list, self.names = root, image_list, class_list, names
        self.shuffle, self.seed, self.resize = shuffle, seed, resize
        self.clean_root = clean_root
        self.gives = given(names and class_list, clean_root)
        self._files: dict[tuple[str, int], ImageFiles] = {}
        self._tests: dict[int, tuple[TestSet, ...]] = {}

    @cached_property
    def _classes(self) -> tuple[dict[str, int], tuple[str, ...]]:
        """Labels by class folder, the same in every corruption, and the names of the list."""
        first = self._folder(self.domains()[0], self.severity)
        return imagenet_labels(first, self.class_list, type(self).__name__, self._where)

    def _folder(self, corruption: str, severity: int) -> Path:
        return self._where / corruption / str(severity)

    @property
    def space(self) -> LabelSpace:
        labels, names = self._classes
        ids = tuple(sorted(labels.values()))
        return LabelSpace(ids, tuple(names[i] for i in ids) if self.names and names else ())

    @property
    def known_as(self) -> tuple[str, ...]:
        return called(self._classes[0])

    @property
    def source(self) -> Experience | None:
        return self._source

    @cached_property
    def _source(self) -> Experience | None:
        return imagenet_source(self.clean_root, self._classes[0], self.space, 224, 256)

    def corrupted(self, corruption: str, severity: int) -> Dataset:
        key = (corruption, severity)
        if key not in self._files:
            folder, classes = self._folder(corruption, severity), self._classes[0]
            if differ := set(class_dirs(folder, self._where)) ^ set(classes):
                raise UserError(f'"{folder}" and the first corruption differ in the class folders {listed(sorted(differ))}: '
                                "fetch both again.")

            def find() -> Listing:
                if self.image_list:
                    return in_list(folder, self.image_list, classes)
                return in_folders(folder, classes, self._where)

            self._files[key] = ImageFiles(find, self._where, 224, self.resize)
        return self._files[key]

    def at(self, severity: int) -> Sequence[TestSet]:
        if severity not in self._tests:
            tests = tuple(super().at(severity))
            self._tests[severity] = tuple(shuffled(t, self.seed, t.name) for t in tests) if self.shuffle else tests
        return self._tests[severity]

    def stream(self) -> Sequence[TestSet]:
        return self.at(self.severity)

    def protocol(self) -> Mapping[str, Any]:
        data = {name: digest_of(self.corrupted(name, self.severity)) for name in sorted(self.domains())}
        source = {"source": digest_of(self.source.data)} if self.source is not None else {}
        return {**super().protocol(), "data": data, "shuffle": self.shuffle, "resize": self.resize, **source}

    def notes(self) -> Sequence[str]:
        return short_list(self._classes[1])


class ImageNet3DCC(ImageNetC):
    """ImageNet-3DCC: 12 corruptions that follow the scene's depth, of the ImageNet validation images.

    Kar et al., "3D Common Corruptions and Data Augmentation", CVPR 2022. Layout and arguments as in ``imagenet_c``; no
    order of the corruptions is agreed on, this is that of the authors' list.
    """

    name: ClassVar[str] = "imagenet_3dcc"
    paper: ClassVar[str] = "Kar et al., CVPR 2022"
    known: ClassVar[tuple[str, ...]] = (
        "near_focus", "far_focus", "bit_error", "color_quant", "flash", "fog_3d", "h265_abr", "h265_crf", "iso_noise",
        "low_light", "xy_motion_blur", "z_motion_blur",
    )  # fmt: skip
    lists: ClassVar[Mapping[str, tuple[str, ...]]] = {"standard": known}

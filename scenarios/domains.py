"""Natural shifts from their folders: ImageNet-R, -A, -V2, -Sketch, ImageNet-D109 and DomainNet-126."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from torch.utils.data import Dataset

from cl_bench import Experience, LabelSpace, TestSet, UserError
from cl_bench.data.classes import called, numbered
from cl_bench.data.files import existing_file
from cl_bench.data.folder import ImageFiles, in_folders, loose_images
from cl_bench.data.lists import lines_of, with_labels
from cl_bench.ranges import Count, Pixels, Seed

from ._data import digest_of
from ._domains import DomainStream
from ._files import (
    IMAGENET,
    given,
    imagenet_labels,
    imagenet_source,
    need_root,
    one_folder_per_label,
    short_list,
    shuffled,
)

__all__ = ["DomainNet126", "ImageNetA", "ImageNetD109", "ImageNetR", "ImageNetSketch", "ImageNetV2"]


class ImageNetR(DomainStream):
    """ImageNet-R: 30,000 renditions (art, cartoons, toys, ...) of 200 ImageNet classes.

    Hendrycks et al., "The Many Faces of Robustness", ICCV 2021.

    Args:
        root: folder of one folder of images per class.
        class_list: the 1,000 ImageNet classes in label order, from your copy: text with a class per line
            (LOC_synset_mapping.txt) or JSON (imagenet_class_index.json). The set holds 200 of them: a classifier of
            1,000 answers among these only.
        names: reveal the names of ``class_list``.
        shuffle: random order; without it one class follows another.
        seed: of that order.
        resize: short side before the centre crop to 224.
        clean_root: folder of ImageNet's training images, one folder per class; gives ``source``, the classes of the stream
            alone. "" = no source.
        test_batch_size: 64.
    """

    name: ClassVar[str] = "imagenet_r"
    paper: ClassVar[str] = "Hendrycks et al., ICCV 2021"
    places: ClassVar[frozenset[str]] = frozenset({"class_list"})
    subset: ClassVar[bool] = True  # of ImageNet's classes: the list is needed
    subject = "photographs"

    def __init__(
        self,
        root: str = "",
        class_list: str = "",
        names: bool = False,
        shuffle: bool = True,
        seed: Seed = 0,
        resize: Pixels = 256,
        clean_root: str = "",
        test_batch_size: Count = 64,
    ) -> None:
        super().__init__(None, test_batch_size)
        self._where = need_root(root, type(self).__name__, "one folder of images per class")
        if self.subset and not class_list:
            raise UserError(
                f"{type(self).__name__} holds 200 of ImageNet's 1,000 classes; set class_list to a file with the 1,000 "
                "in label order (LOC_synset_mapping.txt or imagenet_class_index.json)."
            )
        self.root, self.class_list, self.names = root, class_list, names
        self.shuffle, self.seed, self.resize = shuffle, seed, resize
        self.clean_root = clean_root
        self.gives = given(names and class_list, clean_root)

    @cached_property
    def _classes(self) -> tuple[dict[str, int], tuple[str, ...]]:
        return imagenet_labels(self._where, self.class_list, type(self).__name__, self._where)

    @property
    def source(self) -> Experience | None:
        return self._source

    @cached_property
    def _source(self) -> Experience | None:
        return imagenet_source(self.clean_root, self._classes[0], self.space, 224, self.resize)

    def domains(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def space(self) -> LabelSpace:
        labels, names = self._classes
        ids = tuple(sorted(labels.values()))
        return LabelSpace(ids, tuple(names[i] for i in ids) if self.names and names else ())

    @property
    def known_as(self) -> tuple[str, ...]:
        return called(self._classes[0])

    def images(self, domain: str) -> Dataset:
        return self._files

    @cached_property
    def _files(self) -> ImageFiles:
        return ImageFiles(lambda: in_folders(self._where, self._classes[0], self._where), self._where, 224, self.resize)

    def stream(self) -> Sequence[TestSet]:
        return self._tests

    @cached_property
    def _tests(self) -> tuple[TestSet, ...]:
        tests = super().stream()
        return tuple(shuffled(t, self.seed, t.name) for t in tests) if self.shuffle else tuple(tests)

    def protocol(self) -> Mapping[str, Any]:
        source = {"source": digest_of(self.source.data)} if self.source is not None else {}
        return {**super().protocol(), "data": digest_of(self.images(self.name)), "shuffle": self.shuffle, **source}

    def notes(self) -> Sequence[str]:
        loose = loose_images(self._where)
        beside = [f"{loose} images of the root lie in no class folder and are left out."] if loose else []
        return [*short_list(self._classes[1]), *beside]


class ImageNetA(ImageNetR):
    """ImageNet-A: 7,500 natural images of 200 classes that a ResNet-50 gets wrong.

    Hendrycks et al., "Natural Adversarial Examples", CVPR 2021. Arguments as in ``imagenet_r``.
    """

    name: ClassVar[str] = "imagenet_a"
    paper: ClassVar[str] = "Hendrycks et al., CVPR 2021"


class ImageNetV2(ImageNetR):
    """ImageNet-V2: 10,000 new validation images, collected anew; folders are called by their label.

    Recht et al., "Do ImageNet Classifiers Generalize to ImageNet?", ICML 2019. Arguments as in ``imagenet_r``;
    ``class_list`` is needed only where folders are called by class ids and some are missing.
    """

    name: ClassVar[str] = "imagenet_v2"
    paper: ClassVar[str] = "Recht et al., ICML 2019"
    subset: ClassVar[bool] = False


class ImageNetSketch(ImageNetR):
    """ImageNet-Sketch: 50,889 drawings of the 1,000 ImageNet classes.

    Wang et al., "Learning Robust Global Representations by Penalizing Local Predictive Power", NeurIPS 2019. Arguments
    as in ``imagenet_r``; ``class_list`` is needed only where classes are missing.
    """

    name: ClassVar[str] = "imagenet_sketch"
    paper: ClassVar[str] = "Wang et al., NeurIPS 2019"
    subset: ClassVar[bool] = False


class DomainNet126(DomainStream):
    """DomainNet-126: a classifier of one domain meets the other three, 126 classes.

    Peng et al., "Moment Matching for Multi-Source Domain Adaptation", ICCV 2019, in the cleaned subset of Saito et al.
    (ICCV 2019) and the sequences of TTA-lib, which depend on the source domain.

    Args:
        root: folder that the lists' paths start from (``clipart/``, ``painting/``, ``real/``, ``sketch/``).
        lists: folder of ``<domain>_list.txt``, one ``path label`` per line; "" = ``root``.
        source_domain: real, clipart, painting or sketch; its list is the source data.
        shuffle: random order within each domain; the lists go class by class.
        seed: of these orders.
        resize: short side before the centre crop to 224.
        order: None = as published; a number draws another order of the domains.
        test_batch_size: 128 as published.
    """

    name: ClassVar[str] = "domainnet126"
    paper: ClassVar[str] = "Peng et al., ICCV 2019"
    places: ClassVar[frozenset[str]] = frozenset({"lists"})
    gives: frozenset[str] = frozenset({"names", "source"})
    sequences: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "real": ("clipart", "painting", "sketch"),
        "clipart": ("sketch", "real", "painting"),
        "painting": ("real", "sketch", "clipart"),
        "sketch": ("painting", "clipart", "real"),
    }
    subject = "photographs"

    def __init__(
        self,
        root: str = "",
        lists: str = "",
        source_domain: str = "real",
        shuffle: bool = True,
        seed: Seed = 0,
        resize: Pixels = 256,
        order: Seed | None = None,
        test_batch_size: Count = 128,
    ) -> None:
        super().__init__(order, test_batch_size)
        if source_domain not in self.sequences:
            raise UserError(f"source_domain {source_domain!r}: use one of {', '.join(self.sequences)}.")
        self._where = need_root(root, type(self).__name__, "the folders of the domains")
        self.root, self.lists, self.source_domain = root, lists, source_domain
        self.shuffle, self.seed, self.resize = shuffle, seed, resize
        self.mapping: list[int] = []
        self._files: dict[str, ImageFiles] = {}

    def domains(self) -> tuple[str, ...]:
        return self.sequences[self.source_domain]

    @property
    def space(self) -> LabelSpace:
        ids = sorted({int(i) for name in self.domains() for i in self._of(name).y.unique()})
        return self._named(ids)

    def _named(self, ids: Sequence[int]) -> LabelSpace:
        """These classes with their names, which tell a classifier of theirs from one of other classes."""
        return LabelSpace(tuple(ids), tuple(self._names[i].replace("_", " ") for i in ids))

    @cached_property
    def _names(self) -> dict[int, str]:
        lists = {name: self._of(name) for name in (*self.domains(), self.source_domain)}
        return one_folder_per_label({n: (f.files, f.y.tolist()) for n, f in lists.items()})

    def images(self, domain: str) -> Dataset:
        return self._of(domain)

    def _of(self, domain: str) -> ImageFiles:
        if domain not in self._files:
            where = need_root(self.lists, "lists", "<domain>_list.txt") if self.lists else self._where
            file = existing_file(where / f"{domain}_list.txt", 'it should hold one "path label" per line.')
            self._files[domain] = ImageFiles(lambda: with_labels(file, self._where, self.mapping), self._where, 224,
                                             self.resize)
        return self._files[domain]

    def stream(self) -> Sequence[TestSet]:
        return self._tests

    @cached_property
    def _tests(self) -> tuple[TestSet, ...]:
        tests = super().stream()
        return tuple(shuffled(t, self.seed, t.name) for t in tests) if self.shuffle else tuple(tests)

    @property
    def source(self) -> Experience | None:
        data = self._of(self.source_domain)
        return Experience(self.source_domain, self._named(sorted(int(i) for i in data.y.unique())), data)

    def protocol(self) -> Mapping[str, Any]:
        data = {name: digest_of(self._of(name)) for name in sorted(self.domains())}
        return {**super().protocol(), "data": data, "shuffle": self.shuffle}


class ImageNetD109(DomainNet126):
    """ImageNet-D109: DomainNet's images of 109 classes that are also ImageNet's, five domains.

    Rusak et al., "ImageNet-D: A new challenging robustness dataset inspired by domain adaptation", 2022, in the
    selection of 109 classes of ROID (Marsden et al., WACV 2024), which leaves quickdraw out.

    Args:
        root, lists, shuffle, seed, resize, order: as in ``domainnet126``.
        label_map: text file whose k-th line is the ImageNet label (0 to 999) of the lists' label k, for a classifier of
            1,000 classes; "" = labels as they are.
        test_batch_size: 64.
    """

    name: ClassVar[str] = "imagenet_d109"
    paper: ClassVar[str] = "Rusak et al., 2022; Marsden et al., WACV 2024"
    places: ClassVar[frozenset[str]] = frozenset({"lists", "label_map"})
    gives: frozenset[str] = frozenset()
    sequences: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "imagenet": ("clipart", "infograph", "painting", "real", "sketch")
    }

    def __init__(
        self,
        root: str = "",
        lists: str = "",
        label_map: str = "",
        shuffle: bool = True,
        seed: Seed = 0,
        resize: Pixels = 256,
        order: Seed | None = None,
        test_batch_size: Count = 64,
    ) -> None:
        super().__init__(root, lists, "imagenet", shuffle, seed, resize, order, test_batch_size)
        self.label_map = label_map
        if label_map:
            lines = lines_of(label_map)
            bad = [line for line in lines if not (line.isascii() and line.isdigit() and int(line) < IMAGENET)]
            if bad:
                raise UserError(f'"{label_map}" has a line {bad[0]!r}: it should hold one ImageNet label (0 to 999) per line.')
            self.mapping = [int(line) for line in lines]

    def _named(self, ids: Sequence[int]) -> LabelSpace:
        return LabelSpace(tuple(ids))  # several folders may be one class of ImageNet

    @property
    def known_as(self) -> tuple[str, ...]:
        return numbered(self.space.ids) if self.mapping else ()

    @property
    def source(self) -> Experience | None:
        return None

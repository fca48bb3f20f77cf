"""Any labelled images of one's own: folders of classes, folders of domains, or lists of paths and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch.utils.data import Dataset

from cl_bench import Scenario, UserError, Wrapper
from cl_bench.data.files import existing_folder
from cl_bench.data.folder import ImageFiles, Listing, class_dirs, in_folders, loose_images
from cl_bench.data.labels import absent
from cl_bench.data.lists import read_class_list, with_labels
from cl_bench.ranges import Count, LegacySeed, Pixels, Whole
from cl_bench.types import LabelSpace, Transform

from ._augment import ResizedCropFlip
from ._files import MOST, drawn_part, listed, need_root, same_classes
from .domain_folders import FolderDomains
from .split import Answers, ClassIncremental
from .split_folders import FolderSplit

__all__ = ["ClassFolders", "ImageList"]

YOURS = "images of your own"


class _Either(Wrapper):
    """What both scenarios below share: ``split`` chooses between classes and domains, and refuses the other's options."""

    def __init__(self, of: Scenario, name: str, split: str, given: Mapping[str, Any]) -> None:
        super().__init__(of)
        self.name, self.split = name, split
        odd = [key for key, (value, usual) in given.items() if value != usual]
        if odd:
            raise UserError(f"{', '.join(odd)} {'belongs' if len(odd) == 1 else 'belong'} to split=class; with split=domain "
                            "every domain is one experience with all classes.")


class ClassFolders(_Either):
    """Any folder of labelled images, learned a few classes at a time (split=class) or domain by domain (split=domain).

    Layout with split=class: ``train/<class>/<image>`` and ``test/<class>/<image>`` (or ``val``) below ``root``; or
    ``<class>/<image>`` alone, then 80 % of every class train and 20 % test, drawn once and the same for everyone. With
    split=domain: ``train/<domain>/<class>/<image>`` and ``test/<domain>/<class>/<image>``; or ``<domain>/<class>/<image>``
    alone, split in the same way. Classes and domains are numbered in order of name; hidden files are skipped.

    Args:
        root: the data set's folder.
        name: what tables call the data.
        split: what arrives in turn: ``class`` or ``domain``.
        base, increment: classes of the first experience (0 = increment) and of every later one, with split=class.
        order: None = in order of name; with split=class a number is numpy's RandomState (PILOT: 1993), with
            split=domain it draws the domains' order; or a list of positions.
        answers: ``auto`` is ``seen`` with split=class and ``all`` with split=domain; ``task`` answers every test set among
            its own classes.
        per_class: only the first so many training images of every class, with split=class; 0 = all.
        size, resize: pixels: short side to ``resize``, centre crop to ``size``.
        augmented: random resized crop and flip of training images.
    """

    family: ClassVar[str] = "class-incremental"

    def __init__(
        self,
        *,
        root: str = "",
        name: str = "",
        split: Literal["class", "domain"] = "class",
        base: Whole = 0,
        increment: Count = 10,
        order: LegacySeed | list[int] | None = None,
        answers: Literal["auto", "seen", "all", "task"] = "auto",
        per_class: Whole = 0,
        size: Pixels = 224,
        resize: Pixels = 256,
        augmented: bool = True,
    ) -> None:
        need_root(root, "ClassFolders", _Classes.layout if split == "class" else _Domains.layout)
        of: Scenario
        if split == "class":
            of = _Classes(root=root, base=base, increment=increment, order=order, answers=_view(answers, "seen"),
                          per_class=per_class, size=size, resize=resize, augmented=augmented)
        else:
            of = _Domains(root=root, order=order, answers=_domain_view(answers), size=size, resize=resize, augmented=augmented)
        super().__init__(of, name, split, {} if split == "class" else {
            "base": (base, 0), "increment": (increment, 10), "per_class": (per_class, 0)})


class ImageList(_Either):
    """Any images that lists name, learned a few classes at a time (split=class) or domain by domain (split=domain).

    Layout with split=class: the lists ``train.txt`` and ``test.txt``, an image's path below ``root`` and its class number
    (0, 1, ...) per line, as DomainNet's lists are. With split=domain: ``<domain>_train.txt`` and ``<domain>_test.txt`` for
    every domain, in order of name. The same class has the same number in all of them.

    Args:
        root: the folder that paths are below.
        lists: the folder of the lists; "" = ``root``.
        class_list: names of the classes, one per line in order of number; "" = they have none.
        name: what tables call the data.
        split, base, increment, order, answers, per_class, size, resize, augmented: as in ``class_folders``.
    """

    family: ClassVar[str] = "class-incremental"
    places: ClassVar[frozenset[str]] = frozenset({"lists", "class_list"})

    def __init__(
        self,
        *,
        root: str = "",
        lists: str = "",
        class_list: str = "",
        name: str = "",
        split: Literal["class", "domain"] = "class",
        base: Whole = 0,
        increment: Count = 10,
        order: LegacySeed | list[int] | None = None,
        answers: Literal["auto", "seen", "all", "task"] = "auto",
        per_class: Whole = 0,
        size: Pixels = 224,
        resize: Pixels = 256,
        augmented: bool = True,
    ) -> None:
        where = need_root(root, "ImageList", "the images that the lists name")
        tables = existing_folder(lists or root, "it should hold train.txt and test.txt, or <domain>_train.txt and "
                                                "<domain>_test.txt.")
        source = _Lists(where, tables, class_list, split == "domain")
        of: Scenario
        if split == "class":
            of = _ListedClasses(source, size, resize, augmented, base=base, increment=increment, order=order,
                                answers=_view(answers, "seen"), per_class=per_class)
        else:
            of = _ListedDomains(source, root=root, order=order, answers=_domain_view(answers), size=size, resize=resize,
                                augmented=augmented)
        super().__init__(of, name, split, {} if split == "class" else {
            "base": (base, 0), "increment": (increment, 10), "per_class": (per_class, 0)})


def _view(answers: str, usual: str) -> Any:
    return usual if answers == "auto" else answers


def _domain_view(answers: str) -> Any:
    if answers == "seen":
        raise UserError("answers=seen belongs to split=class; with split=domain every class is there from the first domain on: "
                        "use all or task.")
    return _view(answers, "all")


def parts_of(root: Path) -> tuple[Path, Path] | None:
    """The folders of the published training and test part, or None where there are none.

    Raises:
        UserError: a training part alone, which would be read as a class called "train".
    """
    tests = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if not (root / "train").is_dir():
        return None
    if not tests:
        raise UserError(f'"{root}" holds "train" and neither "test" nor "val": add the test images, or name "{root / "train"}" '
                        "as root, whose classes are then split 80 to 20.")
    return root / "train", tests[0]


class _Classes(FolderSplit):
    """The classes of :class:`ClassFolders`."""

    abstract: ClassVar[bool] = True
    layout: ClassVar[str] = "train/<class>/<image> and test/<class>/<image>, or <class>/<image>"
    subject = YOURS

    @cached_property
    def parts(self) -> tuple[Path, Path] | None:
        return parts_of(Path(self.root).expanduser())

    def folder(self, part: str) -> Path:
        if self.parts is None:
            return existing_folder(self.root)
        return existing_folder(self.parts[0 if part == "train" else 1], root=self.root)

    def class_names(self) -> tuple[str, ...]:
        return tuple(n.replace("_", " ") for n in self.folders())

    def listing(self, part: Literal["train", "test"], where: Path) -> Listing:
        if self.parts is not None:
            return super().listing(part, where)
        classes = {name: k for k, name in enumerate(self.folders())}
        return drawn_part(where, classes, part, "class folders", root=Path(self.root))

    def beside(self) -> list[str]:
        return super().beside() if self.parts is not None else _loose({self.folder("train").name: self.folder("train")})


class _Domains(FolderDomains):
    """The domains of :class:`ClassFolders`."""

    abstract: ClassVar[bool] = True
    layout: ClassVar[str] = ("train/<domain>/<class>/<image> and test/<domain>/<class>/<image>, or <domain>/<class>/<image>")
    subject = YOURS

    @cached_property
    def parts(self) -> tuple[Path, Path] | None:
        return parts_of(Path(self.root).expanduser())

    @cached_property
    def published(self) -> tuple[str, ...]:  # type: ignore[override]
        if self.parts is None:
            return tuple(class_dirs(Path(self.root).expanduser()))
        train, test = (class_dirs(part, Path(self.root)) for part in self.parts)
        if train != test:
            raise UserError(f'"{self.parts[0]}" and "{self.parts[1]}" differ in the domains {listed(set(train) ^ set(test))}: '
                            "give both the same.")
        return tuple(train)

    def folder(self, domain: str = "") -> Path:
        return existing_folder((self.parts[0] if self.parts else Path(self.root).expanduser()) / domain, root=self.root)

    def load(self, domain: str, part: Literal["train", "test"]) -> Dataset:
        whole = existing_folder(self.root)  # both parts lie in it
        return ImageFiles(lambda: self.listing(domain, part), whole, self.size, self.resize)

    def listing(self, domain: str, part: Literal["train", "test"]) -> Listing:
        label = {name: k for k, name in enumerate(self.folders())}
        if self.parts is None:
            where = self.folder(domain)
            there = set(class_dirs(where, Path(self.root)))
            return drawn_part(where, {n: k for n, k in label.items() if n in there}, part, "domain folders", domain,
                              root=Path(self.root))
        where = existing_folder(self.parts[0 if part == "train" else 1] / domain, root=self.root)
        there = set(class_dirs(where, Path(self.root)))
        same_classes(self.folders(), there, "training", str(where))
        return in_folders(where, {n: k for n, k in label.items() if n in there}, Path(self.root))

    def notes(self) -> Sequence[str]:
        places = {domain: self.folder(domain) for domain in self.domains()}
        if self.parts:
            places |= {f"{domain} ({self.parts[1].name})": self.parts[1] / domain for domain in self.domains()}
        return _loose(places)


def _loose(places: Mapping[str, Path]) -> list[str]:
    counts = {name: loose_images(where) for name, where in places.items()}
    return [f"{count} images of {name} lie in no class folder and are left out." for name, count in counts.items() if count]


class _Lists:
    """List files, read once."""

    def __init__(self, root: Path, lists: Path, class_list: str, domains: bool) -> None:
        self.root, self.lists, self.class_list, self.by_domain = root, lists, class_list, domains
        self._read: dict[str, Listing] = {}

    @cached_property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains that have a list for training."""
        found = sorted(f.name.removesuffix("_train.txt") for f in self.lists.glob("?*_train.txt") if not f.name.startswith("."))
        if not found:
            raise UserError(f'"{self.lists}" holds no lists <domain>_train.txt: put them there, or name their folder '
                            "with lists.")
        return tuple(found)

    def read(self, name: str) -> Listing:
        """The images that ``<name>.txt`` names, with their labels."""
        if name not in self._read:
            self._read[name] = with_labels(self.lists / f"{name}.txt", self.root)
        return self._read[name]

    @cached_property
    def classes(self) -> int:
        """How many classes there are.

        Raises:
            UserError: numbers that leave one out, or others than ``class_list`` has.
        """
        names = [f"{d}_{part}" for d in self.domains for part in ("train", "test")] if self.by_domain else ["train", "test"]
        used = sorted({label for name in names for label in self.read(name)[1]})
        count = len(self.names) or used[-1] + 1
        if used[-1] >= count:
            raise UserError(f'the lists in "{self.lists}" use class {used[-1]}, and class_list names {count}: give the list '
                            "that belongs to them.")
        if len(used) < count and not self.names:
            first = absent(used, count, MOST)
            more = f" and {count - len(used) - len(first)} more" if count - len(used) > len(first) else ""
            raise UserError(f'the lists in "{self.lists}" leave out the classes {listed(first)}{more} below {used[-1]}: number '
                            "classes 0, 1, 2, ... without a gap.")
        return count

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the classes by number; () without a class list."""
        return read_class_list(self.class_list)[1] if self.class_list else ()


class _ListedClasses(ClassIncremental):
    """The classes of :class:`ImageList`."""

    abstract: ClassVar[bool] = True
    subject = YOURS

    def __init__(self, source: _Lists, size: Pixels, resize: Pixels, augmented: bool, *, base: Whole, increment: Count,
                 order: LegacySeed | list[int] | None, answers: Answers, per_class: Whole) -> None:
        super().__init__(base=base, increment=increment, order=order, answers=answers, per_class=per_class)
        self.source_lists, self.size, self.resize, self.augmented = source, size, resize, augmented

    def number_of_classes(self) -> int:
        return self.source_lists.classes

    def class_names(self) -> tuple[str, ...]:
        return self.source_lists.names

    def augment(self) -> Transform | None:
        return ResizedCropFlip() if self.augmented else None

    def load(self, part: Literal["train", "test"]) -> Dataset:
        return ImageFiles(lambda: self.source_lists.read(part), self.source_lists.root, self.size, self.resize)


class _ListedDomains(FolderDomains):
    """The domains of :class:`ImageList`."""

    abstract: ClassVar[bool] = True
    subject = YOURS

    def __init__(self, source: _Lists, **given: Any) -> None:
        super().__init__(**given)
        self.source_lists = source
        if not source.names:
            self.gives = self.gives - {"names"}

    @property
    def published(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.source_lists.domains

    def class_names(self) -> tuple[str, ...]:
        return self.source_lists.names or tuple(str(k) for k in range(self.source_lists.classes))

    def space_of(self, domain: str) -> LabelSpace:
        found = super().space_of(domain)
        return found if self.source_lists.names else LabelSpace(found.ids)

    def listing(self, domain: str, part: Literal["train", "test"]) -> Listing:
        return self.source_lists.read(f"{domain}_{part}")

    def notes(self) -> Sequence[str]:
        return ()

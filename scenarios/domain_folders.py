"""Domain-incremental data sets that lie as folders of images: DomainNet, CORe50, Office-Home, PACS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch.utils.data import Dataset

from cl_bench import TestSet, UserError
from cl_bench.data.files import existing_folder
from cl_bench.data.folder import ImageFiles, Listing, class_dirs, in_folders, loose_images
from cl_bench.data.labels import absent
from cl_bench.data.lists import with_labels
from cl_bench.ranges import Pixels, Seed
from cl_bench.types import Transform

from ._augment import ResizedCropFlip
from ._data import digest_of
from ._files import drawn_part, one_folder_per_label, same_classes
from .domain_incremental import DomainAnswers, DomainIncremental

__all__ = ["Core50", "DomainNet", "OfficeHome", "Pacs"]


class FolderDomains(DomainIncremental):
    """Domains and classes are folders; images: short side to ``resize``, centre crop to ``size``.

    Args:
        root: the data set's folder.
        order: None = the published order; an int draws another; or a list of positions.
        answers: ``all`` (domain-incremental) or ``task`` (task-incremental).
        size, resize: pixels.
        augmented: random resized crop and flip of training images.
    """

    layout: ClassVar[str] = "<domain>/<class>/<image>"
    split_seed: ClassVar[int] = 0
    published: ClassVar[tuple[str, ...]] = ()
    held_out: ClassVar[tuple[str, ...]] = ()  # folders of images that are tested and never learned
    subject = "photographs"

    def __init__(
        self,
        *,
        root: str = "",
        order: Seed | list[int] | None = None,
        answers: DomainAnswers = "all",
        size: Pixels = 224,
        resize: Pixels = 256,
        augmented: bool = True,
    ) -> None:
        super().__init__(order=order, answers=answers)
        self.root, self.size, self.resize, self.augmented = root, size, resize, augmented

    def domains(self) -> tuple[str, ...]:
        return self.published

    def folder(self, domain: str = "") -> Path:
        """The folder of a domain, or the root.

        Raises:
            UserError: if it is missing, with the layout.
        """
        if not self.root:
            raise UserError(f"{type(self).__name__} needs its data: set root to a folder that holds {self.layout}.")
        return existing_folder(Path(self.root) / domain, f"set root to a folder that holds {self.layout}.", self.root)

    def folders(self) -> list[str]:
        """Names of the class folders, by class id: those of all domains.

        Raises:
            UserError: a domain that both lacks classes of the others and has classes of its own; of published lists,
                two that give one label to two classes, or a label without an image.
        """
        return self._folders

    @cached_property
    def _folders(self) -> list[str]:
        known: set[str] = set()
        for place in (*self.published, *self.held_out):
            there = class_dirs(self.folder(place), Path(self.root))
            same_classes(known or there, there, "the folders before it", place)
            known |= set(there)
        return sorted(known, key=self.rank)

    def rank(self, folder: str) -> Any:
        """What class folders are ordered by."""
        return folder

    def class_names(self) -> tuple[str, ...]:
        return tuple(n.replace("_", " ") for n in self.folders())

    def augment(self) -> Transform | None:
        return ResizedCropFlip() if self.augmented else None

    def load(self, domain: str, part: Literal["train", "test"]) -> Dataset:
        return ImageFiles(lambda: self.listing(domain, part), self.folder(), self.size, self.resize)

    def listing(self, domain: str, part: Literal["train", "test"]) -> Listing:
        """Every class split 80 / 20 by a fixed draw, for data sets that publish no split.

        Raises:
            UserError: a class of a single image, which cannot be in both parts.
        """
        where = self.folder(domain)
        there = set(class_dirs(where, Path(self.root)))  # what a domain lacks is said by the run
        classes = {name: label for label, name in enumerate(self.folders()) if name in there}
        return drawn_part(where, classes, part, "domain split", self.split_seed, domain, root=Path(self.root))

    def notes(self) -> Sequence[str]:
        loose = {domain: loose_images(self.folder(domain)) for domain in self.domains()}
        return [f"{count} images of {domain} lie in no class folder and are left out." for domain, count in loose.items()
                if count]


class OfficeHome(FolderDomains):
    """Office-Home, 65 classes of office objects in four domains.

    There is no official split: 80 % of every class train, 20 % test, drawn once and the same for everyone.
    """

    name: ClassVar[str] = "office_home"
    family: ClassVar[str] = "domain-incremental"
    paper: ClassVar[str] = "Venkateswara et al., CVPR 2017"
    layout: ClassVar[str] = "Art, Clipart, Product and Real World, each with <class>/<image>"
    published: ClassVar[tuple[str, ...]] = ("Art", "Clipart", "Product", "Real World")


class Pacs(FolderDomains):
    """PACS, 7 classes in four domains.

    80 % of every class train, 20 % test, drawn once and the same for everyone (the official splits leave a domain out).
    """

    family: ClassVar[str] = "domain-incremental"
    paper: ClassVar[str] = "Li et al., ICCV 2017"
    layout: ClassVar[str] = "photo, art_painting, cartoon and sketch, each with <class>/<image>"
    published: ClassVar[tuple[str, ...]] = ("photo", "art_painting", "cartoon", "sketch")


class DomainNet(FolderDomains):
    """DomainNet, 345 classes in six domains, official train and test lists.

    ``root`` holds the domains' folders and the published lists ``<domain>_train.txt`` and ``<domain>_test.txt`` (a path
    below ``root`` and a label per line). The order is RanPAC's; S-Prompts has the alphabetical one (``order=[5, 4, 2, 1,
    0, 3]``).
    """

    name: ClassVar[str] = "domainnet"
    family: ClassVar[str] = "domain-incremental"
    paper: ClassVar[str] = "Peng et al., ICCV 2019; order: McDonnell et al. (RanPAC), NeurIPS 2023"
    layout: ClassVar[str] = "<domain>/<class>/<image> and the lists <domain>_train.txt and <domain>_test.txt"
    published: ClassVar[tuple[str, ...]] = ("real", "quickdraw", "painting", "sketch", "infograph", "clipart")

    def __init__(
        self,
        *,
        root: str = "",
        order: Seed | list[int] | None = None,
        answers: DomainAnswers = "all",
        size: Pixels = 224,
        resize: Pixels = 256,
        augmented: bool = True,
    ) -> None:
        super().__init__(root=root, order=order, answers=answers, size=size, resize=resize, augmented=augmented)
        self._lists: dict[tuple[str, str], Listing] = {}

    @cached_property
    def _folders(self) -> list[str]:  # by class id, as the lists put them together
        lists = [(d, part) for d in self.published for part in ("train", "test")]
        known = one_folder_per_label({f"{d}_{p}.txt": self._lines(d, p) for d, p in lists})
        if without := absent(known, max(known) + 1):
            raise UserError(f"no list has an image of label {without[0]}, where {max(known)} is the largest: take lists of "
                            "one data set.")
        return [known[label] for label in sorted(known)]

    def listing(self, domain: str, part: Literal["train", "test"]) -> Listing:
        return self._lines(domain, part)

    def _lines(self, domain: str, part: str) -> Listing:
        if (domain, part) not in self._lists:
            self._lists[domain, part] = with_labels(self.folder() / f"{domain}_{part}.txt", self.folder())
        return self._lists[domain, part]

    def notes(self) -> Sequence[str]:
        return ()


class Core50(FolderDomains):
    """CORe50, 50 household objects filmed in 11 sessions: eight are learned in turn, three are the test set.

    ``root`` is the published folder ``core50_128x128``: ``s<session>/o<object>/*.png``. Sessions 3, 7 and 10 together
    are one test set, so there is no accuracy per learned session.
    """

    family: ClassVar[str] = "domain-incremental"
    paper: ClassVar[str] = "Lomonaco & Maltoni, CoRL 2017"
    layout: ClassVar[str] = "s1 to s11, each with o1 to o50, each with images"
    published: ClassVar[tuple[str, ...]] = ("s1", "s2", "s4", "s5", "s6", "s8", "s9", "s11")
    held_out: ClassVar[tuple[str, ...]] = ("s3", "s7", "s10")

    def __init__(
        self,
        *,
        root: str = "",
        order: Seed | list[int] | None = None,
        size: Pixels = 128,
        resize: Pixels = 128,
        augmented: bool = True,
    ) -> None:
        super().__init__(root=root, order=order, size=size, resize=resize, augmented=augmented)

    def rank(self, folder: str) -> Any:
        return len(folder), folder  # o1, o2, ..., o10

    @cached_property
    def _test_sets(self) -> list[TestSet]:
        data = ImageFiles(lambda: self.listing("", "test"), self.folder(), self.size, self.resize)
        return [TestSet("s3, s7, s10", self.space, data)]

    def listing(self, domain: str, part: Literal["train", "test"]) -> Listing:
        label = {name: k for k, name in enumerate(self.folders())}
        files, labels = [], []
        for session in (domain,) if part == "train" else self.held_out:
            where = self.folder(session)
            there = set(class_dirs(where, Path(self.root)))
            found = in_folders(where, {name: k for name, k in label.items() if name in there}, Path(self.root))
            files += found[0]
            labels += found[1]
        return files, labels

    def facts(self) -> Mapping[str, Any]:
        return {
            "train": [digest_of(self.part(d, "train")) for d in self.domains()],
            "test": digest_of(self.test_sets()[0].data),
        }

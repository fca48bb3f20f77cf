"""Domain-incremental data sets that lie as folders of images: DomainNet, CORe50, Office-Home, PACS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch.utils.data import Dataset

from cl_bench import TestSet, UserError
from cl_bench.ranges import Pixels, Seed
from cl_bench.types import Transform

from ._augment import ResizedCropFlip
from ._data import digest_of, numbers
from ._files import ImageFiles, Listing, in_folders, with_labels
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
        where = Path(self.root).expanduser() / domain
        if not self.root or not where.is_dir():
            raise UserError(
                f'{type(self).__name__} finds no folder "{where}": set root to a folder that holds {self.layout}.'
            )
        return where

    def folders(self) -> list[str]:
        """Names of the class folders, by class id."""
        return sorted(p.name for p in self.folder(self.published[0]).iterdir() if p.is_dir())

    def class_names(self) -> tuple[str, ...]:
        return tuple(n.replace("_", " ") for n in self.folders())

    def augment(self) -> Transform | None:
        return ResizedCropFlip() if self.augmented else None

    def load(self, domain: str, part: Literal["train", "test"]) -> Dataset:
        return ImageFiles(lambda: self.listing(domain, part), self.folder(), self.size, self.resize)

    def listing(self, domain: str, part: Literal["train", "test"]) -> Listing:
        """Every class split 80 / 20 by a fixed draw, for data sets that publish no split."""
        where, files, labels = self.folder(domain), [], []
        for label, name in enumerate(self.folders()):
            every = in_folders(where, {name: label})[0]
            order = numbers("domain split", self.split_seed, domain, name).permutation(len(every))
            cut = max(1, len(every) // 5)
            rows = sorted(order[:cut] if part == "test" else order[cut:])
            files += [every[k] for k in rows]
            labels += [label] * len(rows)
        return files, labels


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

    def listing(self, domain: str, part: Literal["train", "test"]) -> Listing:
        return with_labels(self.folder() / f"{domain}_{part}.txt", self.folder(), ())


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

    def folders(self) -> list[str]:
        return sorted(super().folders(), key=lambda name: (len(name), name))  # o1, o2, ..., o10

    def test_sets(self) -> Sequence[TestSet]:
        if self._test_sets is None:
            data = ImageFiles(lambda: self.listing("", "test"), self.folder(), self.size, self.resize)
            self._test_sets = [TestSet("s3, s7, s10", self.space, data)]
        return self._test_sets

    def listing(self, domain: str, part: Literal["train", "test"]) -> Listing:
        label = {name: k for k, name in enumerate(self.folders())}
        files, labels = [], []
        for session in (domain,) if part == "train" else self.held_out:
            found = in_folders(self.folder(session), label)
            files += found[0]
            labels += found[1]
        return files, labels

    def facts(self) -> Mapping[str, Any]:
        return {
            "train": [digest_of(self.part(d, "train")) for d in self.domains()],
            "test": digest_of(self.test_sets()[0].data),
        }

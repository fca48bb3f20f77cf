"""CIFAR-10-C, CIFAR-100-C and CIFAR-10.1 from the arrays that their authors publish."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cl_bench import Experience, LabelSpace, TensorData, TestSet, UserError
from cl_bench.data.cifar_c import cifar_c, cifar_c_labels, npy_images, read_npy
from cl_bench.data.classes import CIFAR10, CIFAR100
from cl_bench.data.files import existing_file, existing_folder
from cl_bench.data.labels import whole_labels
from cl_bench.data.parquet import LabelledImages, read_parquet
from cl_bench.data.vision import torchvision_data
from cl_bench.ranges import Count, Seed, Whole

from ._data import Deferred, Shelf, digest_of
from ._domains import CorruptionStream, DomainStream
from ._files import need_root

__all__ = ["CIFAR100C", "CIFAR101", "CIFAR10C"]


def clean_images(root: str, torchvision_name: str, split: str, classes: int) -> LabelledImages:
    """The clean data set: parquet files ``train-*.parquet`` and ``test-*.parquet``, or torchvision's layout."""
    where = existing_folder(root, "it should hold train-*.parquet and test-*.parquet, or torchvision's files.")
    if shards := sorted(where.glob(f"{split}-*.parquet")):
        label = ("fine_label", "label") if classes == 100 else ("label",)
        return read_parquet([existing_file(s, root=where) for s in shards], label=label, classes=classes)
    return torchvision_data(torchvision_name, where, split)  # type: ignore[arg-type]


class CIFAR10C(CorruptionStream):
    """CIFAR-10-C: 15 corruptions of the CIFAR-10 test images at one severity, one after another, without reset.

    Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR
    2019 (Zenodo 2535967). Images in file order, batches of 200, as in CoTTA (CVPR 2022) and robustbench: wrap in
    ``Shuffled`` for another order.

    Args:
        root: folder of ``<corruption>.npy`` (uint8 (50000, 32, 32, 3), five severities; or fewer rows, one severity)
            and ``labels.npy``; ``original.npy``, if there, is the clean test set.
        clean_root: folder of clean CIFAR-10 (train-*.parquet and test-*.parquet, or torchvision's layout); gives
            ``source``, and the clean test set where ``root`` has none. "" = no source.
        severity: 1 to 5.
        corruptions: "standard" (15), "extra" (4), "all" (19), "rotta" (the 15 in RoTTA's order), or names.
        limit: the first images of each corruption only; 0 = all.
        order: None = as listed; a number draws another order of the domains.
        test_batch_size: 200 as published.
    """

    name: ClassVar[str] = "cifar10c"
    paper: ClassVar[str] = "Hendrycks and Dietterich, ICLR 2019"
    classes: ClassVar[tuple[int, tuple[str, ...], str]] = (10, CIFAR10, "CIFAR10")
    subject = "photographs"

    def __init__(
        self,
        root: str = "",
        clean_root: str = "",
        severity: int = 5,
        corruptions: str | list[str] = "standard",
        limit: Whole = 0,
        order: Seed | None = None,
        test_batch_size: Count = 200,
    ) -> None:
        super().__init__(severity, corruptions, order, test_batch_size)
        what = f"{self.classes[2]}-C"
        self._where = need_root(root, what, "labels.npy and one .npy per corruption")
        self.root, self.clean_root, self.limit = root, clean_root, limit
        given = {"names"} if self.classes[1] else set()
        self.gives = frozenset(given | ({"source"} if clean_root else set()))
        self._shelf = Shelf(4)

    @property
    def space(self) -> LabelSpace:
        count, names, _ = self.classes
        return LabelSpace(tuple(range(count)), names)

    def corrupted(self, corruption: str, severity: int) -> Dataset:
        hint = "download the data set's archive and unpack it there."
        file = existing_file(self._where / f"{corruption}.npy", hint, self._where)
        y = cifar_c_labels(self._where, severity if len(npy_images(file)) == 50_000 else None, self.classes[0])
        y = y[: self.limit or None]

        def make() -> Tensor:
            loaded = cifar_c(self._where, corruption, severity=severity, limit=self.limit or None, classes=self.classes[0])
            if not torch.equal(loaded.y, y):
                raise UserError(f'"{self._where}/labels.npy" does not fit {corruption}.npy; fetch both again.')
            return loaded.x

        return Deferred(make, y, self._shelf)

    @property
    def source(self) -> Experience | None:
        if not self.clean_root:
            return None
        return Experience(self.classes[2], self.space, self._learned)

    @cached_property
    def _learned(self) -> TensorData:
        return clean_images(self.clean_root, self.classes[2], "train", self.classes[0]).data

    def test_sets(self) -> Sequence[TestSet]:
        return () if self._clean is None else (TestSet("clean", self.space, self._clean),)

    @cached_property
    def _clean(self) -> TensorData | None:
        if (self._where / "original.npy").is_file():
            return cifar_c(self._where, "original", limit=self.limit or None, classes=self.classes[0])
        if not self.clean_root:
            return None
        whole = clean_images(self.clean_root, self.classes[2], "test", self.classes[0]).data
        return whole.subset(torch.arange(min(self.limit or len(whole), len(whole))))

    def protocol(self) -> Mapping[str, Any]:
        data = {test.name: digest_of(test.data) for test in sorted(self.stream(), key=lambda t: t.name)}
        source = self.source
        return {
            **super().protocol(),
            "data": data,
            "clean": [digest_of(t.data) for t in self.test_sets()],
            "source": digest_of(source.data) if source is not None else None,
        }


class CIFAR100C(CIFAR10C):
    """CIFAR-100-C: 15 corruptions of the CIFAR-100 test images at one severity, one after another, without reset.

    Hendrycks and Dietterich, ICLR 2019 (Zenodo 3555552). Arguments as in ``cifar10c``; fine labels.
    """

    name: ClassVar[str] = "cifar100c"
    classes: ClassVar[tuple[int, tuple[str, ...], str]] = (100, (), "CIFAR100")

    @property
    def known_as(self) -> tuple[str, ...]:
        return CIFAR100


class CIFAR101(DomainStream):
    """CIFAR-10.1: 2,000 new test images for CIFAR-10, a natural shift.

    Recht et al., "Do CIFAR-10 Classifiers Generalize to CIFAR-10?", 2018 (modestyachts/CIFAR-10.1).

    Args:
        root: folder of ``cifar10.1_<version>_data.npy`` (uint8 (N, 32, 32, 3)) and ``cifar10.1_<version>_labels.npy``.
        version: v6 (2,000 images, balanced) or v4 (2,021).
        test_batch_size: 200.
    """

    name: ClassVar[str] = "cifar10_1"
    paper: ClassVar[str] = "Recht et al., 2018"
    gives: frozenset[str] = frozenset({"names"})
    subject = "photographs"

    def __init__(self, root: str = "", version: str = "v6", test_batch_size: Count = 200) -> None:
        super().__init__(None, test_batch_size)
        if version not in ("v4", "v6"):
            raise UserError(f"version {version!r} of CIFAR-10.1: use v6 or v4.")
        self._where = need_root(root, "CIFAR-10.1", "cifar10.1_v6_data.npy and cifar10.1_v6_labels.npy")
        self.root, self.version = root, version

    def domains(self) -> tuple[str, ...]:
        return ("cifar10.1",)

    @property
    def space(self) -> LabelSpace:
        return LabelSpace(tuple(range(10)), CIFAR10)

    def images(self, domain: str) -> Dataset:
        return self._data

    @cached_property
    def _data(self) -> TensorData:
        x = npy_images(existing_file(self._where / f"cifar10.1_{self.version}_data.npy", root=self._where))
        file = existing_file(self._where / f"cifar10.1_{self.version}_labels.npy", root=self._where)
        y = whole_labels(np.array(read_npy(file)), f'"{file}"', 10)
        if x.shape[1:] != (32, 32, 3) or len(y) != len(x):
            raise UserError(
                f'"{self._where}" holds images {x.dtype} {x.shape} and {len(y)} labels; expected uint8 '
                "(N, 32, 32, 3) and (N,), as published."
            )
        images = torch.from_numpy(x.copy()).permute(0, 3, 1, 2).contiguous()
        return TensorData(images, y)

    def protocol(self) -> Mapping[str, Any]:
        return {**super().protocol(), "data": digest_of(self.images("cifar10.1"))}

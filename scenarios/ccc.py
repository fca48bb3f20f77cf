"""Continuously Changing Corruptions from its tar files."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from torch.utils.data import Dataset

from cl_bench import LabelSpace, Scenario, TestSet, UserError
from cl_bench.data.classes import numbered
from cl_bench.data.files import existing_file, existing_folder
from cl_bench.data.labels import whole_labels
from cl_bench.data.pixels import decode_image
from cl_bench.ranges import Count, Seed, Whole

from ._files import need_root

__all__ = ["CCC"]


class TarImages(Dataset):
    """One tar of ``<key>.input.jpg`` and ``<key>.output.cls``, in order, indexed when first looked at.

    Raises:
        UserError: not a tar of such pairs.
    """

    says_labels: ClassVar[bool] = True

    def __init__(self, file: Path, limit: int) -> None:
        self.file, self.limit = file, limit

    @cached_property
    def _index(self) -> tuple[list[tuple[int, int]], Tensor]:
        images: dict[str, tuple[int, int]] = {}
        labels: dict[str, int] = {}
        try:
            with tarfile.open(self.file, "r:") as tar:
                for member in tar:
                    key, _, kind = member.name.rpartition("/")[2].partition(".")
                    if kind == "input.jpg":
                        images[key] = (member.offset_data, member.size)
                    elif kind == "output.cls":
                        content = tar.extractfile(member)
                        labels[key] = int(content.read()) if content is not None else -1
        except Exception as fault:  # a damaged header raises whatever it does
            raise UserError(f'"{self.file}" is not a tar of CCC ({fault}); fetch it again.') from fault
        if not images or images.keys() != labels.keys():
            raise UserError(
                f'"{self.file}" has {len(images)} images and {len(labels)} labels; expected pairs of '
                "<key>.input.jpg and <key>.output.cls."
            )
        keys = list(images)[: self.limit]
        y = whole_labels([labels[k] for k in keys], f'"{self.file}"', 1000)
        return [images[k] for k in keys], y

    @property
    def y(self) -> Tensor:
        """Labels (N,)."""
        return self._index[1]

    def __len__(self) -> int:
        return len(self._index[0])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        start, size = self._index[0][index]
        with self.file.open("rb") as f:
            f.seek(start)
            return decode_image(f.read(size), 224, f"{index} of {self.file}"), int(self.y[index])

    def digest(self) -> str:
        """16 hex digits over the bytes and labels of the images that are used; each is read once, none decoded."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        h = hashlib.sha256()
        with self.file.open("rb") as f:
            for (start, size), label in zip(self._index[0], self.y.tolist(), strict=True):
                f.seek(start)
                h.update(f"{size} {label};".encode() + f.read(size))
        return h.hexdigest()[:16]


class CCC(Scenario):
    """CCC: ImageNet validation images under two corruptions at once that change all the time, 7.5 million images.

    Press et al., "RDumb: A simple approach that questions our progress in continual test-time adaptation", NeurIPS 2023
    (oripress/CCC). Each tar of 25,000 images is one domain of the record, so its errors are the running curve; nine
    runs make one level: speeds 1000, 2000, 5000 and seeds 43, 44, 45.

    Args:
        root: folder of ``baseline_<baseline>_transition+speed_<speed>_seed_<seed>/serial_%05d.tar``.
        baseline: 40 (easy), 20 (medium) or 0 (hard): the source ResNet-50's accuracy that the path keeps to.
        speed: images per step of severity.
        seed: of the path.
        images: how many of the stream; fewer than 7,500,000 is a shortened version and the protocol says so.
        test_batch_size: 64 as published.
    """

    family: ClassVar[str] = "test-time stream"
    paper: ClassVar[str] = "Press et al., NeurIPS 2023"
    gives: frozenset[str] = frozenset()
    answers = "all"
    subject = "photographs"

    def __init__(
        self,
        root: str = "",
        baseline: Whole = 20,
        speed: Count = 2000,
        seed: Seed = 43,
        images: Count = 7_500_000,
        test_batch_size: Count = 64,
    ) -> None:
        layout = "baseline_20_transition+speed_2000_seed_43/serial_00000.tar and its siblings"
        self._where = need_root(root, "CCC", layout)
        self.root, self.baseline, self.speed, self.seed = root, baseline, speed, seed
        self.images, self.test_batch_size = images, test_batch_size

    @property
    def space(self) -> LabelSpace:
        return LabelSpace(tuple(range(1000)))

    @property
    def known_as(self) -> tuple[str, ...]:
        return numbered(range(1000))

    def stream(self) -> Sequence[TestSet]:
        return self._tests

    @cached_property
    def _tests(self) -> tuple[TestSet, ...]:
        stem = f"baseline_{self.baseline}_transition+speed_{self.speed}_seed_{self.seed}"
        folder = existing_folder(self._where / stem, "it should hold serial_00000.tar and its siblings.", self._where)
        tars = sorted(folder.glob("serial_*.tar"))
        if [t.name for t in tars] != [f"serial_{k:05d}.tar" for k in range(len(tars))] or not tars:
            raise UserError(f'"{folder}" should hold serial_00000.tar, serial_00001.tar, ... without a gap.')
        left, tests = self.images, []
        for tar in tars:
            if left <= 0:
                break
            data = TarImages(existing_file(tar, root=self._where), left)
            left -= min(left, 25_000)
            tests.append(TestSet(tar.stem, self.space, data, tar.stem))
        return tuple(tests)

    def protocol(self) -> Mapping[str, Any]:
        return {
            "ccc": [self.baseline, self.speed, self.seed],
            "images": self.images,
            "data": {t.name: t.data.digest() for t in self.stream()},  # type: ignore[attr-defined]
            "test_batch_size": self.test_batch_size,
            "reset": self.reset,
        }

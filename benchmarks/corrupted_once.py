"""A suite over images of files in which no image is corrupted twice.

    python benchmarks/corrupted_once.py --cache runs/.corrupted tta_imagenet_sample --runs runs/tta_imagenet_sample

Everything after ``--cache DIR`` is given to ``cl-bench suite``, which runs in this process, one run after another. Corrupted
images of files are computed when a batch asks for them, by every method anew; here they are kept as bytes (150 KB for one of
224 pixels) under the digest of the clean images and of what is done to them. What a method sees is the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cl_bench.command.cli import main as command
from cl_bench.registry import find


class Store:
    """Corrupted images by data set and row, in files that are mapped into memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.open: dict[str, tuple[np.memmap, np.memmap]] = {}
        self.digests: dict[int, tuple[Any, str]] = {}  # by identity, which the data set beside it keeps unique

    def files(self, data: Any, first: Tensor) -> tuple[np.memmap, np.memmap]:
        """(images (N, ...) uint8, which of them are there (N,)) of a data set whose images are as ``first``."""
        digest = self.digests.setdefault(id(data), (data, data.digest()))[1]
        if digest not in self.open:
            self.folder.mkdir(parents=True, exist_ok=True)
            shape = (len(data), *first.shape)
            at = self.folder / digest
            self.open[digest] = mapped(at.with_suffix(".images"), shape), mapped(at.with_suffix(".there"), shape[:1])
        return self.open[digest]

    def item(self, data: Any, index: int, compute: Any) -> tuple[Tensor, int]:
        """As ``compute(data, index)``."""
        clean = torch.as_tensor(data.clean[index][0]) if id(data) not in self.digests else None
        images, there = self.files(data, clean) if clean is not None else self.open[self.digests[id(data)][1]]
        if not there[index]:
            images[index] = compute(data, index)[0].numpy()
            there[index] = 1
        return torch.from_numpy(np.array(images[index])), int(data.y[index])


def mapped(file: Path, shape: tuple[int, ...]) -> np.memmap:
    """The bytes of a file of this shape, zeros where it is new."""
    return np.memmap(file, np.uint8, "r+" if file.exists() else "w+", shape=shape)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder of images; may be deleted at any time")
    given, suite = parser.parse_known_args()
    find("cl_bench.scenarios", "corrupted")  # imports what computes them
    from cl_bench_scenarios._domains import CorruptedImages

    store, plain = Store(given.cache), CorruptedImages.__getitem__
    CorruptedImages.__getitem__ = lambda self, index: store.item(self, int(index), plain)  # type: ignore[method-assign]
    return command(["suite", *suite, "--jobs", "1"])


if __name__ == "__main__":
    raise SystemExit(main())

"""Images in folders, one folder per class, as ImageNet and its corrupted copies lie on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import UserError
from .files import existing_folder
from .parquet import LabelledImages, decode_image
from .tensor import TensorData

__all__ = ["FolderData", "read_folder"]

_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's ImageFolder


class FolderData(Dataset[tuple[Tensor, int]]):
    """Images decoded when asked for: uint8 (3, size, size) and a label; for sets that do not fit in memory.

    Classes are the sub-folders in order of name, as in torchvision's ImageFolder; files may lie deeper. Short side
    resized (bilinear, antialiased), centre cropped. `resize` larger than `size` cuts the border (ImageNet: resize
    256, size 224).

    Attributes:
        files, y: the paths, and their labels int64 (N,).
        names: class names by label.

    Raises:
        UserError: a missing folder, no classes, or a class without images.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        size: int = 224,
        resize: int | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        where = existing_folder(folder, "it should hold one folder of images per class.")
        self.names = tuple(names) if names else tuple(sorted(p.name for p in where.iterdir() if p.is_dir()))
        if not self.names:
            raise UserError(f'"{where}" holds no folders: put the images of each class into a folder of its name.')
        if resize is not None and resize < size:
            raise UserError(f"resize ({resize}) is smaller than size ({size}): give a larger one, or none.")
        self.size, self.resize = size, resize or size
        self.files: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(self.names):
            if not (where / name).is_dir():
                raise UserError(f'"{where}" has no folder "{name}": check the names of the classes.')
            found = sorted(
                Path(base) / f
                for base, _, inside in os.walk(where / name, followlinks=True)
                for f in inside
                if f.lower().endswith(_ENDINGS)
            )
            if not found:
                raise UserError(f'"{where / name}" holds no images ({", ".join(_ENDINGS)}): fill or remove it.')
            self.files += found
            labels += [label] * len(found)
        self.y = torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x = decode_image(self.files[index], self.size, resize=self.resize)
        return x.contiguous(), int(self.y[index])


def read_folder(
    folder: str | os.PathLike[str],
    *,
    size: int = 224,
    resize: int | None = None,
    names: Sequence[str] | None = None,
    threads: int | None = None,
) -> LabelledImages:
    """All images of a `FolderData`, decoded at once by threads: uint8 (N, 3, size, size), int64 (N,), and class
    names.
    """
    lazy = FolderData(folder, size=size, resize=resize, names=names)
    x = torch.empty(len(lazy), 3, size, size, dtype=torch.uint8)

    def one(i: int) -> None:
        x[i] = lazy[i][0]

    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(one, range(len(lazy)), chunksize=64):  # raises what a thread raised
            pass
    return LabelledImages(TensorData(x, lazy.y), lazy.names)

"""Images that lie as files in the user's own copy of a data set, listed when first needed and read one by one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cl_bench import TestSet, UserError
from cl_bench.data.files import existing_file, existing_folder
from cl_bench.data.parquet import decode_image

from ._data import numbers, view

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
Listing = tuple[list[Path], list[int]]


class ImageFiles(Dataset):
    """Labelled image files: uint8 (3, size, size), short side resized to ``resize``, centre cropped to ``size``.

    ``find`` gives paths and labels; it is asked once, when length, labels or an image are first wanted. Paths in the
    digest are relative to ``root``.
    """

    def __init__(self, find: Callable[[], Listing], root: Path, size: int = 224, resize: int = 256) -> None:
        if resize < size:
            raise UserError(f"resize={resize} is smaller than the image size {size}; give a larger one.")
        self._find, self._root, self.size, self.resize = find, root, size, resize
        self._found: tuple[list[Path], Tensor] | None = None

    def _listing(self) -> tuple[list[Path], Tensor]:
        if self._found is None:
            files, labels = self._find()
            self._found = files, torch.tensor(labels, dtype=torch.int64)
        return self._found

    @property
    def files(self) -> list[Path]:
        """The images' paths."""
        return self._listing()[0]

    @property
    def y(self) -> Tensor:
        """Labels (N,)."""
        return self._listing()[1]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x = decode_image(self.files[index], self.resize, str(self.files[index]))
        cut = (self.resize - self.size) // 2
        return x[:, cut : cut + self.size, cut : cut + self.size].contiguous(), int(self.y[index])

    def digest(self) -> str:
        """16 hex digits over names, sizes in bytes and labels of all files and how they are cropped; pixels are not
        read, which would take hours."""
        h = hashlib.sha256(f"{self.size}/{self.resize}".encode())
        for file, label in zip(self.files, self.y.tolist(), strict=True):
            h.update(f"{file.relative_to(self._root).as_posix()} {file.stat().st_size} {label};".encode())
        return h.hexdigest()[:16]


def need_root(root: str, what: str, layout: str) -> Path:
    """The data set's folder.

    Raises:
        UserError: if none is named or it does not exist, saying what it should hold.
    """
    if not root:
        raise UserError(f"{what} needs its data: set root to a folder with {layout}.")
    return existing_folder(root, f"it should hold {layout}.")


def class_folders(folder: Path, labels: dict[str, int] | None) -> dict[str, int]:
    """Label of every class folder: from ``labels`` (folder name to label), the number that the folder is called, or
    the rank of its name.

    Raises:
        UserError: no folders, or one that the list does not know.
    """
    where = existing_folder(folder, "it should hold one folder of images per class.")
    names = sorted(p.name for p in where.iterdir() if p.is_dir())
    if not names:
        raise UserError(f'"{where}" holds no class folders; it should hold one folder of images per class.')
    if labels is not None:
        unknown = [n for n in names if n not in labels]
        if unknown:
            raise UserError(f'"{where / unknown[0]}" is a class that class_list does not have; check both.')
        return {n: labels[n] for n in names}
    if all(n.isdigit() for n in names):
        return {n: int(n) for n in names}
    return {n: k for k, n in enumerate(names)}


def in_folders(folder: Path, classes: dict[str, int]) -> Listing:
    """All images below the class folders, by class and name.

    Raises:
        UserError: a class folder without images.
    """
    files: list[Path] = []
    labels: list[int] = []
    for name, label in classes.items():
        found = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in ENDINGS)
        if not found:
            raise UserError(f'"{folder / name}" holds no images ({", ".join(ENDINGS)}); fill or remove it.')
        files += found
        labels += [label] * len(found)
    return files, labels


def in_list(folder: Path, lines: Sequence[str], classes: dict[str, int]) -> Listing:
    """The images that a list names, one ``class/file`` per line, in its order.

    Raises:
        UserError: a line without a class that is there, or a file that is not.
    """
    files, labels = [], []
    for line in lines:
        name = line.split("/")[-2] if "/" in line else ""
        if name not in classes:
            raise UserError(f'image_list names "{line}", but "{folder}" has no class folder "{name}".')
        files.append(folder / name / line.split("/")[-1])
        labels.append(classes[name])
    for file in files:
        if not file.is_file():
            raise UserError(f'image_list names "{file}", which is not there; check root and the list.')
    return files, labels


def with_labels(file: Path, root: Path, mapping: Sequence[int]) -> Listing:
    """A list file of DomainNet's kind, ``path label`` per line, paths relative to ``root``; ``mapping`` (or nothing)
    turns the file's labels into the head's.

    Raises:
        UserError: a line of another form, a label without a mapping, or a missing image.
    """
    files, labels = [], []
    for number, line in enumerate(lines_of(file), 1):
        path, _, label = line.rpartition(" ")
        if not path or not label.isdigit() or (mapping and int(label) >= len(mapping)):
            raise UserError(f'line {number} of "{file}" is {line!r}; expected an image\'s path and its label.')
        files.append(root / path)
        labels.append(mapping[int(label)] if mapping else int(label))
    if files and not files[0].is_file():
        raise UserError(f'"{file}" names "{files[0]}", which is not there; check root.')
    return files, labels


def lines_of(path: str | Path) -> list[str]:
    """The non-empty lines of a text file.

    Raises:
        UserError: a missing, empty or unreadable file.
    """
    file = existing_file(path)
    try:
        found = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as fault:
        raise UserError(f'"{file}" is not a text file; expected one entry per line.') from fault
    if not found:
        raise UserError(f'"{file}" is empty; expected one entry per line.')
    return found


def read_class_list(path: str) -> tuple[dict[str, int], tuple[str, ...]]:
    """Folder name of each class to its label, and readable names in label order (folder names where it has none).

    Takes the usual forms: text with a class per line, its id first and a name after it (LOC_synset_mapping.txt), or
    JSON {"0": ["n01440764", "tench"], ...} (imagenet_class_index.json).

    Raises:
        UserError: neither of them.
    """
    if not path.endswith(".json"):
        pairs = [line.split(maxsplit=1) for line in lines_of(path)]
    else:
        try:
            data = json.loads(existing_file(path).read_text(encoding="utf-8"))
            pairs = [list(map(str, data[str(k)])) for k in range(len(data))]
        except (ValueError, KeyError, TypeError) as fault:
            raise UserError(f'"{path}" is not a class index; expected {{"0": ["n01440764", "tench"], ...}}.') from fault
    labels = {pair[0]: k for k, pair in enumerate(pairs)}
    if len(labels) != len(pairs):
        raise UserError(f'"{path}" lists a class twice; expected every class once, in label order.')
    return labels, tuple(pair[1].split(",")[0] if len(pair) > 1 else pair[0] for pair in pairs)


def shuffled(test: TestSet, seed: int, *position: object) -> TestSet:
    """``test`` in a random order that depends on the seed and the position alone."""
    return view(test, numbers("files", seed, *position).permutation(len(test.data)))  # type: ignore[arg-type]

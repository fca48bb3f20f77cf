"""Images that lie as files, one folder per class: what is walked over, what is refused, and the data set over them."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from torch.utils.data import Dataset

from ..errors import UserError
from .files import Bounds, below, existing_folder, file_digest, shown
from .labels import whole_labels
from .pixels import ENDINGS, decode_image

__all__ = ["FolderData", "ImageFiles", "Listing", "class_dirs", "images_below", "in_folders", "loose_images", "shown",
           "stay_inside"]

Listing = tuple[list[Path], list[int]]
# What file managers, notebooks and archives leave between the classes, beside everything whose name starts with a dot.
_LITTER = frozenset({"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
_UNREAD = (".heic", ".heif", ".jxl", ".psd", ".svg", ".eps", ".dng", ".cr2", ".nef", ".arw", ".exr", ".hdr", ".mat", ".npz")


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Labelled image files: uint8 (3, size, size), decoded when asked for; for data that do not fit in memory.

    Short side resized to ``resize`` (bilinear, antialiased), centre cropped to ``size``, as torchvision's ``Resize`` and
    ``CenterCrop`` do.

    Args:
        find: gives paths and labels; asked once, when length, labels or an image are first wanted.
        root: the folder that the user names, which no file may leave by a link (:class:`cl_bench.data.files.Bounds`).

    Raises:
        UserError: sizes that do not fit.
    """

    says_labels: ClassVar[bool] = True

    def __init__(self, find: Callable[[], Listing], root: Path, size: int = 224, resize: int = 256) -> None:
        if size < 1 or resize < size:
            raise UserError(f"resize={resize} is smaller than the image size {size}, or that is not positive: give "
                            "1 <= size <= resize.")
        self._find: Callable[[], Listing] | None = find
        self._root, self.size, self.resize = root, size, resize

    @cached_property
    def _listing(self) -> tuple[list[Path], Tensor]:
        assert self._find is not None
        files, labels = self._find()
        bounds = Bounds(self._root)
        for file in files:
            bounds.check(file)
        return files, whole_labels(labels, f'the images of "{self._root}"')

    @property
    def files(self) -> list[Path]:
        """The images' paths."""
        return self._listing[0]

    @property
    def y(self) -> Tensor:
        """Labels (N,)."""
        return self._listing[1]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x = decode_image(self.files[index], self.size, resize=self.resize)
        return x.contiguous(), int(self.y[index])

    def digest(self) -> str:
        """16 hex digits over the bytes and labels of all files, in order, and how they are cropped, wherever they lie and
        whatever they are called. Each file is read once, without decoding it: less than one pass of a run over the data.

        Raises:
            UserError: a file that is not there or cannot be read.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        h = hashlib.sha256(f"{self.size}/{self.resize}".encode())
        labels = iter(self.y.tolist())
        with ThreadPoolExecutor(8) as pool:  # waiting for a disk; hashing releases the interpreter's lock
            for start in range(0, len(self.files), 1024):
                for digest in pool.map(_content, self.files[start : start + 1024]):
                    h.update(f"{digest} {next(labels)};".encode())
        return h.hexdigest()[:16]

    def __getstate__(self) -> dict[str, Any]:
        """Into a worker process goes what was found: how it was found may be a function that cannot go."""
        return {**self.__dict__, "_listing": self._listing, "_find": None}


class _Found:
    """A listing that is known."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing

    def __call__(self) -> Listing:
        return self.listing


class FolderData(ImageFiles):
    """A folder of class folders as :class:`ImageFiles`; classes are the folders in order of name, as in torchvision's
    ImageFolder, or ``names``; files may lie deeper.

    Raises:
        UserError: a missing folder, no classes, or a class without images.
    """

    def __init__(self, folder: str | os.PathLike[str], *, size: int = 224, resize: int | None = None,
                 names: Sequence[str] | None = None) -> None:
        where = existing_folder(folder, "it should hold one folder of images per class.")
        self.names = tuple(names) if names else tuple(class_dirs(where))
        for name in names or ():
            below(where, name, "names")
        listing = in_folders(where, {name: k for k, name in enumerate(self.names)}, where)
        super().__init__(_Found(listing), where, size, resize or size)


def class_dirs(folder: Path, root: Path | None = None) -> list[str]:
    """Names of the class folders in order; hidden ones and litter are none.

    Args:
        root: the folder that the user names, where it is not ``folder`` itself.

    Raises:
        UserError: a missing folder, none inside, a link that leads nowhere or out of ``root``, a name that is not UTF-8.
    """
    where = existing_folder(folder, "it should hold one folder of images per class.", root)
    bounds = Bounds(root or where)
    names = []
    for entry in _entries(where):
        if stat.S_ISDIR(_stat(Path(entry.path)).st_mode):
            names.append(_utf8(where, entry.name))
            if entry.is_symlink():
                bounds.check(Path(entry.path))
    if not names:
        raise UserError(f'"{where}" holds no folders of classes: put the images of each class into a folder of its name.')
    return sorted(names)


def loose_images(folder: Path) -> int:
    """How many images lie beside the class folders, where no class is."""
    return sum(e.name.lower().endswith(ENDINGS) and e.is_file() for e in _entries(folder))


def in_folders(folder: Path, classes: Mapping[str, int], root: Path) -> Listing:
    """All images below the class folders, by class and path; ``root`` is the folder that the user names.

    Raises:
        UserError: a class folder that is missing or without images, or what :func:`images_below` refuses.
    """
    files: list[Path] = []
    labels: list[int] = []
    for name, label in classes.items():
        if not os.path.isdir(folder / name):
            raise UserError(f'"{folder}" has no folder "{name}": check the names of the classes.')
        found = images_below(folder / name, root)
        if not found:
            raise UserError(f'"{folder / name}" holds no images ({", ".join(ENDINGS)}): fill or remove it.')
        files += found
        labels += [label] * len(found)
    return files, labels


def images_below(folder: Path, root: Path) -> list[Path]:
    """All image files below a folder, by path; hidden files and folders are skipped, links within ``root`` are followed.

    Raises:
        UserError: a link that leads nowhere, in a circle or out of ``root``, something under an image's name that is no
            file, a name that is not UTF-8, an image format that is not read.
    """
    bounds, found = Bounds(root), []
    for path, mode, linked in _walk(bounds.check(folder), _above(folder), bounds):
        ending = _ending(path.name)
        if ending in ENDINGS:
            _utf8(path.parent, path.name)
            if linked:
                bounds.check(path)
            if not stat.S_ISREG(mode):
                raise UserError(f'"{shown(path)}" is a pipe, socket or device under the name of an image: remove it.')
            found.append(path)
        elif ending in _UNREAD and stat.S_ISREG(mode):
            raise UserError(f'"{shown(path)}" is in a format that is not read ({", ".join(ENDINGS)}): convert or remove it.')
    return sorted(found)


def stay_inside(folder: Path, root: Path) -> None:
    """Go through a folder that a library will read by itself, if it is there.

    Raises:
        UserError: a link that leads in a circle or out of ``root``, something that is no file: the library would follow,
            or wait.
    """
    if not folder.is_dir():
        return
    bounds = Bounds(root)
    for path, mode, linked in _walk(bounds.check(folder), _above(folder), bounds):
        if linked:
            bounds.check(path)
        if not stat.S_ISREG(mode):
            raise UserError(f'"{shown(path)}" is a pipe, socket or device, not a file: remove it.')


def _above(folder: Path) -> list[tuple[int, int]]:
    return [(s.st_dev, s.st_ino) for s in map(_stat, folder.absolute().parents)]


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _walk(folder: Path, above: list[tuple[int, int]], bounds: Bounds) -> Iterable[tuple[Path, int, bool]]:
    """All that is no folder below a folder: path, mode, and whether it is a link; folders are looked at before they are
    followed."""
    here = _stat(folder)
    if (here.st_dev, here.st_ino) in above:
        raise UserError(f'"{shown(folder)}" is a link to a folder that it lies in, a circle: remove it.')
    for entry in _entries(folder):
        path, ending = Path(entry.path), _ending(entry.name)
        if entry.is_symlink() and ending and ending not in ENDINGS and not path.exists():
            continue  # notes.txt that leads nowhere is no image either way
        mode = _stat(path).st_mode
        if stat.S_ISDIR(mode):
            _utf8(folder, entry.name)
            if entry.is_symlink():
                bounds.check(path)
            yield from _walk(path, [*above, (here.st_dev, here.st_ino)], bounds)
        else:
            yield path, mode, entry.is_symlink()


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return [e for e in found if not e.name.startswith(".") and e.name not in _LITTER]
    except OSError as fault:
        raise UserError(f'"{shown(folder)}" cannot be read ({fault.strerror or fault}): check its permissions.') from fault


def _content(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as fault:
        _stat(path)  # says what is wrong with a link or a missing file
        raise UserError(f'"{shown(path)}" cannot be read ({fault.strerror}): mend it or its permissions.') from fault


def _stat(path: Path) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as fault:
        if os.path.islink(path):
            raise UserError(f'"{shown(path)}" is a link that leads nowhere, or in a circle: mend or remove it.') from fault
        raise UserError(f'"{shown(path)}" cannot be read ({fault.strerror or fault}): check the path.') from fault


def _utf8(folder: Path, name: str) -> str:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as fault:
        raise UserError(f'"{shown(folder / name)}" has a name that is not UTF-8: rename it.') from fault
    return name

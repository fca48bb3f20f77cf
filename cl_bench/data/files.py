"""Checks that a file is what its name says, before a parser meets it.

Downloads fail quietly: an HTML error page saved under the right name, or half a file. Each check here ends in one
sentence that names the file and says what to do.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..errors import UserError

__all__ = ["Bounds", "below", "brief", "check_magic", "existing_file", "existing_folder", "file_digest", "is_file",
           "is_web_page", "shown", "verify_digest"]

LINKS = "CL_BENCH_LINKS"  # folders that links in a data set may lead to
# First bytes of each format; parquet has its mark at both ends, which also shows a truncated file.
_MAGIC: dict[str, tuple[bytes, ...]] = {
    "gzip": (b"\x1f\x8b",),
    "npy": (b"\x93NUMPY",),
    "parquet": (b"PAR1",),
    "torch": (b"PK\x03\x04", b"\x80\x02"),  # a zip archive since PyTorch 1.6, a bare pickle (protocol 2) before
}


class Bounds:
    """Which files belong to a folder that the user names: those below it, wherever it lies itself.

    A link below it counts as what it leads to. One that leads elsewhere is refused: an archive from a stranger can hold
    one, and data that lie somewhere else can change without their data set. Who keeps a data set as links says where
    they may lead with the environment variable `CL_BENCH_LINKS`, folders as in `PATH`. The cache of the Hugging Face hub
    (``snapshots/<revision>`` with links into ``blobs``) is one data set.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = _expanded(root)
        real = Path(os.path.realpath(self.root))
        named = [_expanded(p) for p in os.environ.get(LINKS, "").split(os.pathsep) if p.strip()]
        hub = [p.parent.parent / "blobs" for p in (real, *real.parents) if p.parent.name == "snapshots"]
        self._grounds = [real, *(Path(os.path.realpath(p)) for p in named), *hub]
        self._folders: dict[str, bool] = {}

    def hold(self, path: Path) -> bool:
        """Whether a path, its links followed, lies below the folder."""
        folder = os.path.dirname(path)
        if folder not in self._folders:  # one look a folder, however many files are in it
            self._folders[folder] = self._real(os.path.realpath(folder))
        if self._folders[folder] and not os.path.islink(path):
            return True
        return self._real(os.path.realpath(path))

    def _real(self, path: str) -> bool:
        return any(Path(path).is_relative_to(ground) for ground in self._grounds)

    def check(self, path: Path) -> Path:
        """The path.

        Raises:
            UserError: it leads out of the folder.
        """
        if not self.hold(path):
            raise UserError(f'"{shown(path)}" is a link, or lies in one, that leads out of "{shown(self.root)}": put the '
                            f"data there, or name the folder that it may lead to in the environment variable {LINKS}.")
        return path


def existing_file(path: str | os.PathLike[str], hint: str = "", root: str | os.PathLike[str] | None = None) -> Path:
    """The path, or a `UserError` that says the file is missing or empty and, with `hint`, what belongs there.

    With ``root``, the folder that the user names, a link that leads out of it is refused too (:class:`Bounds`).
    """
    found = _expanded(path)
    kind = _kind(found)
    if kind is None or stat.S_ISDIR(kind):
        raise UserError(f'There is no file "{found}"{_because(hint)}')
    if not stat.S_ISREG(kind):
        raise UserError(f'"{found}" is a pipe, socket or device, not a file{_because(hint)}')
    if found.stat().st_size == 0:
        raise UserError(f'"{found}" is empty: fetch it again.')
    return found if root is None else Bounds(root).check(found)


def existing_folder(path: str | os.PathLike[str], hint: str = "", root: str | os.PathLike[str] | None = None) -> Path:
    """The path, or a `UserError` that says the folder is missing and, with `hint`, what belongs there; ``root`` as above."""
    found = _expanded(path)
    kind = _kind(found)
    if kind is None or not stat.S_ISDIR(kind):
        raise UserError(f'There is no folder "{found}"{_because(hint)}')
    return found if root is None else Bounds(root).check(found)


def below(root: Path, name: str, told: str) -> Path:
    """The path ``name`` below ``root`` as a list gives it, on Windows too; a :class:`UserError` if it leaves ``root``.

    Args:
        told: who names the path, for the message: a line of a list, a row of a file.
    """
    inside = PurePosixPath(name.replace("\\", "/"))
    if inside.is_absolute() or ".." in inside.parts or PureWindowsPath(name).drive or "\0" in name:
        raise UserError(f'{told} names "{brief(name)}", which leaves the folder "{root}": give paths below it.')
    return root / inside


def is_file(path: Path) -> bool:
    """Whether a file lies there; False, too, for a name that none can have."""
    kind = _kind(path)
    return kind is not None and stat.S_ISREG(kind)


def brief(text: str) -> str:
    """A line or a name as a sentence quotes it, cut where it is long."""
    return text if len(text) <= 160 else f"{text[:120]}...{text[-20:]}"


def _expanded(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as fault:  # "~name" of nobody
        raise UserError(f'"{path}" starts at the home of a user that is not here: write the whole path.') from fault


def _kind(path: Path) -> int | None:
    """What lies at a path (links followed), or None where nothing does or nothing can: a name too long, a NUL."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return None


def check_magic(path: Path, kind: str) -> None:
    """Refuse an HTML page, a Git LFS pointer or another format under the name of a `kind` file.

    `kind` is "gzip", "npy", "parquet", "torch" or "safetensors".
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            start = f.read(512)
            f.seek(max(0, size - 4))
            end = f.read(4)
    except OSError as fault:
        raise UserError(f'"{path}" cannot be read ({fault.strerror or fault}): check its permissions.') from fault
    if is_web_page(start):
        raise UserError(f'"{path}" is a web page, not a {kind} file: the download failed, fetch the file itself.')
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f'"{path}" is a Git LFS pointer, not the file: run "git lfs pull", or fetch the file itself.')
    if kind == "safetensors":
        header = int.from_bytes(start[:8], "little")
        if len(start) < 9 or start[8:9] != b"{":
            raise UserError(f'"{path}" is not a safetensors file: name a safetensors file, or fetch it again.')
        if 8 + header > size:
            raise UserError(f'"{path}" is cut short: fetch it again.')
        return
    if not start.startswith(_MAGIC[kind]):
        raise UserError(f'"{path}" is not a {kind} file: name a {kind} file, or fetch it again.')
    if kind == "parquet" and end != b"PAR1":
        raise UserError(f'"{path}" is cut short (no parquet footer): fetch it again.')


def is_web_page(start: bytes) -> bool:
    """Whether a file's first bytes are those of a web page: what a failed download leaves under the right name."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--"))


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as f:
        while piece := f.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def verify_digest(path: Path, expected: str, algorithm: str = "sha256") -> str:
    """The digest, or a `UserError` if it does not begin with `expected` (hex; at least 8 characters of it)."""
    if len(expected) < 8:
        raise UserError(f'The digest "{expected}" is too short to tell files apart: give at least 8 characters.')
    found = file_digest(path, algorithm)
    if not found.startswith(expected.lower()):
        raise UserError(
            f'"{path}" has {algorithm} {found[:16]}... where {expected[:16]}... is expected: '
            "it is cut short or another version, fetch it again."
        )
    return found


def shown(path: str | os.PathLike[str]) -> str:
    """A path as it can be printed anywhere, whatever bytes its name has."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode()


def _because(hint: str) -> str:
    return f": {hint}" if hint else ": check the path."

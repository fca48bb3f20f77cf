"""A run's folder as one archive, where machines share no file system."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path, PurePosixPath

from ..records.writer import check_id

__all__ = ["pack", "unpack"]


def pack(folder: Path) -> bytes:
    """Every plain file of a run's folder but its lock; ``run.json`` before ``DONE``, as a reader must find them."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for file in sorted(folder.rglob("*"), key=lambda f: (f.name == "DONE", f)):
            if file.is_file() and not file.is_symlink() and file.name != "LOCK":
                archive.write(file, f"{folder.name}/{file.relative_to(folder).as_posix()}")
    return made.getvalue()


def unpack(parcel: bytes, runs: Path) -> Path:
    """The folder below ``runs`` that an archive of :func:`pack` becomes; what it holds already is replaced file by file.

    Raises:
        ValueError: for a name that would leave the run's folder.
    """
    with zipfile.ZipFile(io.BytesIO(parcel)) as archive:
        names = [PurePosixPath(name) for name in archive.namelist()]
        if not names or len({name.parts[0] for name in names}) != 1 or any(
                name.is_absolute() or ".." in name.parts or len(name.parts) < 2 or "\\" in str(name) for name in names):
            raise ValueError("the archive that came back is not one run's folder")
        folder = runs / check_id(names[0].parts[0])
        for name in names:
            target = runs.joinpath(*name.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(f".{target.name}.0")
            beside.write_bytes(archive.read(str(name)))
            beside.replace(target)
    return folder

"""The IDX format of MNIST and its kin (LeCun, Cortes, Burges, "The MNIST database", 1998), plain or gzipped."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from .files import check_magic, existing_file, verify_digest
from .labels import whole_labels
from .pixels import check_size
from .tensor import TensorData

__all__ = ["read_idx", "read_idx_pair"]

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | os.PathLike[str], *, md5: str | None = None) -> np.ndarray:
    """The array in an IDX file (`.gz` or not), in the machine's byte order.

    Args:
        md5: expected digest of the file as it lies on disk; the MNIST pages publish them.

    Raises:
        UserError: a file that is missing, of another format or digest, or shorter or longer than its header says.
    """
    file = existing_file(path)
    if file.suffix == ".gz":
        check_magic(file, "gzip")
    if md5 is not None:
        verify_digest(file, md5, "md5")
    with _opened(file) as f:
        head = _read(f, 4, file)
        if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _TYPES or head[3] == 0:
            raise UserError(f'"{file}" is not an IDX file: name the file with images or labels, or fetch it again.')
        kind, rank = np.dtype(_TYPES[head[2]]), head[3]
        sizes = _read(f, 4 * rank, file)
        shape = tuple(int(n) for n in np.frombuffer(sizes[: 4 * (len(sizes) // 4)], dtype=">u4"))
        wanted = kind.itemsize * math.prod(shape)
        _refuse_large(file, shape, wanted)
        content = _read(f, wanted + 1, file)
    if len(shape) != rank or len(content) != wanted:
        more = "more than" if len(content) > wanted else f"{len(content)} of"
        raise UserError(
            f'"{file}" holds {more} the {wanted} bytes of {shape} where its header says so: it is damaged, fetch it again.'
        )
    return np.frombuffer(content, dtype=kind).reshape(shape).astype(kind.newbyteorder("="))


def _refuse_large(file: Path, shape: tuple[int, ...], wanted: int) -> None:
    """A header is a promise: what no file of this size can hold is not reserved, nor images that are too large."""
    if len(shape) == 3:
        check_size((shape[2], shape[1]), f'of "{file}"')
    # DEFLATE packs at most about 1,032 bytes into one
    most = file.stat().st_size * (1040 if file.suffix == ".gz" else 1)
    if wanted > most:
        raise UserError(f'"{file}" is too short for the {wanted} bytes where its header says {shape}: it is damaged, '
                        "fetch it again.")


def _opened(file: Path) -> Any:
    return gzip.open(file) if file.suffix == ".gz" else file.open("rb")


def _read(f: Any, size: int, file: Path) -> bytes:
    try:
        return f.read(size)
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f'"{file}" is cut short or damaged ({error}): fetch it again.') from error


def read_idx_pair(
    images: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    *,
    images_md5: str | None = None,
    labels_md5: str | None = None,
    classes: int = 0,
) -> TensorData:
    """Grey images (N, H, W) and labels (N,) as uint8 (N, 3, H, W), the grey in all three channels, and int64 (N,).

    Args:
        classes: how many there are; labels beyond are refused. 0 = unknown.
    """
    x, y = read_idx(images, md5=images_md5), read_idx(labels, md5=labels_md5)
    if x.ndim != 3 or x.dtype != np.uint8 or y.ndim != 1:
        raise UserError(f'"{images}" has shape {x.shape} and "{labels}" {y.shape}: give images first, then labels.')
    if len(x) == 0:
        raise UserError(f'"{images}" holds no images: fetch it again.')
    if len(x) != len(y):
        raise UserError(f'"{images}" holds {len(x)} images but "{labels}" {len(y)} labels: use files of one split.')
    grey = torch.from_numpy(x)[:, None]
    return TensorData(grey.expand(-1, 3, -1, -1).contiguous(), whole_labels(y, f'"{labels}"', classes))

"""The IDX format of MNIST and its kin (LeCun, Cortes, Burges, "The MNIST database", 1998), plain or gzipped."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError
from .files import check_magic, existing_file, verify_digest
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
    content = _content(file)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _TYPES or content[3] == 0:
        raise UserError(f'"{file}" is not an IDX file: name the file with images or labels, or fetch it again.')
    kind, rank = np.dtype(_TYPES[content[2]]), content[3]
    start = 4 + 4 * rank
    shape = tuple(int(n) for n in np.frombuffer(content[4:start], dtype=">u4")) if len(content) >= start else ()
    wanted = start + kind.itemsize * int(np.prod(shape, dtype=np.int64))
    if len(shape) != rank or len(content) != wanted:
        raise UserError(
            f'"{file}" holds {len(content)} bytes where its header says {wanted}: it is damaged, fetch it again.'
        )
    return np.frombuffer(content, dtype=kind, offset=start).reshape(shape).astype(kind.newbyteorder("="))


def _content(file: Path) -> bytes:
    if file.suffix != ".gz":
        return file.read_bytes()
    try:
        with gzip.open(file) as f:
            return f.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f'"{file}" is cut short or damaged ({error}): fetch it again.') from error


def read_idx_pair(
    images: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    *,
    images_md5: str | None = None,
    labels_md5: str | None = None,
) -> TensorData:
    """Grey images (N, H, W) and labels (N,) as uint8 (N, 3, H, W), the grey in all three channels, and int64 (N,)."""
    x, y = read_idx(images, md5=images_md5), read_idx(labels, md5=labels_md5)
    if x.ndim != 3 or x.dtype != np.uint8 or y.ndim != 1:
        raise UserError(f'"{images}" has shape {x.shape} and "{labels}" {y.shape}: give images first, then labels.')
    if len(x) != len(y):
        raise UserError(f'"{images}" holds {len(x)} images but "{labels}" {len(y)} labels: use files of one split.')
    grey = torch.from_numpy(x)[:, None]
    return TensorData(grey.expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(y.astype(np.int64)))

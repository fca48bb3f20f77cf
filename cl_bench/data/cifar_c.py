"""Corruption benchmarks kept as arrays: CIFAR-10-C, CIFAR-100-C and their kin.

Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations", ICLR 2019
(github.com/hendrycks/robustness): one `.npy` per corruption, uint8 (50000, 32, 32, 3), five blocks of 10,000 rows for
severities 1 to 5 over the same test images, and `labels.npy` with as many rows.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError
from .files import check_magic, existing_file, existing_folder
from .tensor import TensorData

__all__ = ["CIFAR_C_CORRUPTIONS", "cifar_c", "cifar_c_corruptions", "read_npy"]

# The fifteen of the paper's tables, in its order; the archive holds four more, meant for validation.
CIFAR_C_CORRUPTIONS: tuple[str, ...] = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
_SEVERITIES = 5
_BLOCK = 10_000


def cifar_c_corruptions(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """The corruptions that a folder holds: those of the paper in its order, then others by name."""
    where = existing_folder(folder, "it should hold labels.npy and one .npy per corruption.")
    found = {p.stem for p in where.glob("*.npy")} - {"labels", "original"}
    return tuple(c for c in CIFAR_C_CORRUPTIONS if c in found) + tuple(sorted(found - set(CIFAR_C_CORRUPTIONS)))


def cifar_c(
    folder: str | os.PathLike[str], corruption: str, *, severity: int = 5, limit: int | None = None
) -> TensorData:
    """One corruption at one severity as uint8 (N, 3, H, W) and int64 (N,).

    Files of 50,000 rows hold five severities, of which rows (severity - 1) * 10,000 onwards are read. Files of
    another length hold a single one, which is taken to be severity 5; so is `original` (no corruption), at any
    severity.

    Args:
        corruption: a file's name without ending; "original" for clean images where the folder has them.
        severity: 1 to 5.
        limit: the first rows of the severity only (the benchmarks on 5,000 or 1,000 images).

    Raises:
        UserError: a missing or damaged file, an unknown corruption, a severity that the folder does not hold.
    """
    if not 1 <= severity <= _SEVERITIES:
        raise UserError(f"Severity is 1 to {_SEVERITIES}, not {severity}.")
    where = existing_folder(folder, "it should hold labels.npy and one .npy per corruption.")
    file = where / f"{corruption}.npy"
    if not file.is_file():
        known = ", ".join(cifar_c_corruptions(where)) or "no corruption at all"
        raise UserError(f'"{where}" has no "{corruption}.npy": it holds {known}.')
    x, y = read_npy(file), read_npy(where / "labels.npy")
    if x.ndim != 4 or x.shape[-1] != 3 or x.dtype != np.uint8:
        raise UserError(f'"{file}" holds {x.dtype} {x.shape}, not uint8 images (N, H, W, 3): name a CIFAR-C folder.')
    rows = slice(0, len(x))
    if len(x) == _SEVERITIES * _BLOCK:
        rows = slice((severity - 1) * _BLOCK, severity * _BLOCK)
    elif severity != _SEVERITIES and corruption != "original":
        raise UserError(f'"{file}" holds {len(x)} rows, thus one severity: use severity 5 or the full archive.')
    # Labels repeat for every severity, or are given once.
    if len(y) not in (len(x), rows.stop - rows.start):
        raise UserError(f'"{where}/labels.npy" has {len(y)} rows where "{file.name}" has {len(x)}: fetch both again.')
    y = y[rows] if len(y) == len(x) else y
    images = torch.from_numpy(np.array(x[rows][:limit])).permute(0, 3, 1, 2).contiguous()
    return TensorData(images, torch.from_numpy(y[:limit].astype(np.int64)))


def read_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """A `.npy` array, mapped from disk and not executed (no pickled objects); `UserError` if missing or damaged."""
    file: Path = existing_file(path)
    check_magic(file, "npy")
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(
            f'"{file}" cannot be read as an array ({error}): it is cut short or damaged, fetch it again.'
        ) from error

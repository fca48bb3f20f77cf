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
from .labels import whole_labels
from .pixels import check_size
from .tensor import TensorData

__all__ = ["CIFAR_C_CORRUPTIONS", "cifar_c", "cifar_c_corruptions", "cifar_c_labels", "npy_images", "read_npy"]

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
    found = {p.stem for p in where.glob("[!.]*.npy")} - {"labels", "original"}
    return tuple(c for c in CIFAR_C_CORRUPTIONS if c in found) + tuple(sorted(found - set(CIFAR_C_CORRUPTIONS)))


def cifar_c(
    folder: str | os.PathLike[str],
    corruption: str,
    *,
    severity: int = 5,
    limit: int | None = None,
    classes: int = 0,
) -> TensorData:
    """One corruption at one severity as uint8 (N, 3, H, W) and int64 (N,).

    Files of 50,000 rows hold five severities, of which rows (severity - 1) * 10,000 onwards are read. Files of
    another length hold a single one, which is taken to be severity 5; so is `original` (no corruption), at any
    severity.

    Args:
        corruption: a file's name without ending; "original" for clean images where the folder has them.
        severity: 1 to 5.
        limit: the first rows of the severity only (the benchmarks on 5,000 or 1,000 images).
        classes: how many there are; other files' labels are refused. 0 = unknown.

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
    x = npy_images(existing_file(file, root=where))
    y = cifar_c_labels(where, severity if len(x) == _SEVERITIES * _BLOCK else None, classes)
    rows = slice(0, len(x))
    if len(x) == _SEVERITIES * _BLOCK:
        rows = slice((severity - 1) * _BLOCK, severity * _BLOCK)
    elif severity != _SEVERITIES and corruption != "original":
        raise UserError(f'"{file}" holds {len(x)} rows, thus one severity: use severity 5 or the full archive.')
    if len(y) != rows.stop - rows.start:
        raise UserError(f'"{where}/labels.npy" has {len(y)} rows where "{file.name}" has {len(x)}: fetch both again.')
    images = torch.from_numpy(np.array(x[rows][:limit])).permute(0, 3, 1, 2).contiguous()
    return TensorData(images, y[:limit])


def cifar_c_labels(folder: Path, severity: int | None, classes: int = 0) -> torch.Tensor:
    """The labels (N,) of one severity; all that ``labels.npy`` holds where it gives them once.

    Raises:
        UserError: labels of another data set: beyond ``classes``, or of only some of them where all must occur.
    """
    file = existing_file(folder / "labels.npy", root=folder)
    y = whole_labels(np.array(read_npy(file)), f'"{file}"', classes)
    found = len(y.unique())
    # A test set of ten images per class and more has every class: a tenth of them is CIFAR-10 read as CIFAR-100.
    if classes and len(y) >= 10 * classes and found * 2 < classes:
        raise UserError(f'"{file}" holds {found} of {classes} classes: it is of another data set, name the right folder.')
    whole = len(y) == _SEVERITIES * _BLOCK and severity is not None
    return y[(severity - 1) * _BLOCK : severity * _BLOCK] if whole and severity is not None else y


def npy_images(file: str | os.PathLike[str]) -> np.ndarray:
    """An array of images, uint8 (N, H, W, 3), mapped from disk.

    Raises:
        UserError: anything else.
    """
    x = read_npy(file)
    if x.ndim != 4 or x.shape[-1] != 3 or x.dtype != np.uint8:
        raise UserError(f'"{file}" holds {x.dtype} {x.shape}, not uint8 images (N, H, W, 3): name a CIFAR-C folder.')
    check_size((x.shape[2], x.shape[1]), f'of "{file}"')
    return x


def read_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """A `.npy` array, mapped from disk and not executed (no pickled objects); `UserError` if missing or damaged."""
    file: Path = existing_file(path)
    check_magic(file, "npy")
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header raises whatever the expression in it does
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f'"{file}" cannot be read as an array ({reason}): it is cut short or damaged, fetch it again.'
        ) from error

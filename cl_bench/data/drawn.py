"""Images of synthetic data sets: a colour for the class, and noise that is the image's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["CLASSES", "PER_CLASS", "SIDE", "class_folders", "picture", "pixels"]

CLASSES = 4  # of every copy whose data set may have any number
PER_CLASS = (4, 2)  # training and test images
SIDE = 32


def pixels(label: int, number: int, *more: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An image (SIDE, SIDE, 3) with a colour for its class and a little noise of its own."""
    noise = np.random.RandomState((label, number, *more)).randint(0, 60, (SIDE, SIDE, 3))
    colour = np.array([(60 * label) % 190, (110 + 50 * label) % 190, (20 + 90 * label) % 190])
    return (noise + colour).astype(np.uint8)


def picture(file: Path, label: int, number: int, *more: int) -> None:
    from PIL import Image

    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(label, number, *more)).save(file, compress_level=1)


def class_folders(where: Path, count: int, names: Sequence[str] = (), domain: int = 0) -> list[str]:
    """``count`` images in each class folder; returns their names."""
    known = list(names) or [f"class_{k}" for k in range(CLASSES)]
    for label, name in enumerate(known):
        for number in range(count):
            picture(where / name / f"{number}.png", label, number, count, domain)
    return known

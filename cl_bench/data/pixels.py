"""Encoded images to uint8 RGB: every pixel format right or refused, nothing too large decoded."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .files import is_file, is_web_page

__all__ = ["ENDINGS", "LARGEST", "check_size", "decode_image", "rgb_picture"]

LARGEST = 89_478_485  # pixels: a quarter of a GiB as RGB, from where Pillow warns of decompression bombs
ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".tif", ".tiff", ".webp", ".gif",
    ".jp2", ".avif", ".tga",
)  # fmt: skip
# Pillow opens more (some by running a program, as EPS does): these are images that data sets are made of.
_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF", "JPEG2000", "AVIF", "TGA", "MPO", "ICO", "PCX", "SGI")
_TOO_LARGE = f", where 1 to {LARGEST:,} pixels are decoded: leave it out or shrink it."
_SIXTEEN = ("I;16", "I;16B", "I;16L", "I;16N")


def decode_image(source: Any, size: int | None = None, name: str = "", resize: int | None = None) -> Tensor:
    """One encoded image (bytes-like, or a path) as uint8 (3, H, W) in RGB; of several frames the first.

    Grey, palette, CMYK and the like become RGB as Pillow converts them, 16-bit grey is scaled to 8 bits, alpha is
    dropped (as torchvision's ImageFolder drops it), a camera's rotation tag is not followed. With ``size`` the short
    side is resized to ``resize`` (or ``size``; bilinear, antialiased) and the centre cropped to a square, with the
    roundings of torchvision's ``Resize`` and ``CenterCrop``.

    Raises:
        UserError: naming the image, where it cannot be decoded, has more than ``LARGEST`` pixels, or pixels whose range
            is unknown (32-bit, floating point).
    """
    where = name or f'"{source}"'
    if isinstance(source, Path):
        if not is_file(source):
            raise UserError(f"The image {where} is not a file: check the path, or fetch it again.")
    elif size is None and _is_plain(source, where):
        return _decode_quickly(source, where)
    picture = rgb_picture(source, where)
    if size is not None:
        width, height = picture.size
        side = resize or size
        scaled = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
        check_size(scaled, f"{where}, resized to a short side of {side},")
        if scaled != picture.size:
            picture = picture.resize(scaled, _bilinear())
        left, top = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
        picture = picture.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def check_size(size: tuple[int, int], where: str) -> None:
    """Refuse images (width, height) of no pixels, or of more than ``LARGEST``."""
    if min(size) < 1 or size[0] * size[1] > LARGEST:
        raise UserError(f"The image {where} is {size[0]} x {size[1]} pixels{_TOO_LARGE}")


def rgb_picture(source: Any, where: str) -> Any:
    """One encoded image (bytes-like, or a path) as Pillow's image in RGB, as :func:`decode_image` says."""
    from PIL import Image

    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=_formats()) as opened:
            check_size(opened.size, where)
            opened.load()
            mode = opened.mode
            if mode in _SIXTEEN or (mode == "I" and opened.format in ("PNG", "PPM")):
                deep = np.asarray(opened).astype(np.int64)
                return Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
            if mode in ("I", "F"):
                kind = "32-bit" if mode == "I" else "floating-point"
                raise UserError(f"The image {where} has {kind} pixels, whose range is unknown: save it with 8 or 16 bits.")
            if mode in ("P", "PA", "La", "RGBa"):
                return opened.convert("RGBA").convert("RGB")
            return opened.convert("RGB")
    except UserError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit is twice ours, and comes first
        raise UserError(f"The image {where} is larger{_TOO_LARGE}") from error
    except Exception as error:  # whatever a decoder meets in a damaged file
        raise UserError(f"The image {where} {_reason(source, error)}, fetch it again.") from error


def _reason(source: Any, error: Exception) -> str:
    from PIL import UnidentifiedImageError

    try:
        start = source.open("rb").read(512) if isinstance(source, Path) else bytes(source[:512])
    except OSError:
        start = b""
    if is_web_page(start):
        return "cannot be decoded: it is a web page"
    if isinstance(error, UnidentifiedImageError):
        return "cannot be decoded: it is damaged or in no format that is read (JPEG, PNG, BMP, PPM, TIFF, WebP, GIF, ...)"
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"cannot be decoded ({first}): it is damaged"


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(f for f in _FORMATS if f in Image.OPEN)  # AVIF and JPEG 2000 depend on how Pillow was built


def _bilinear() -> Any:
    from PIL import Image

    return Image.Resampling.BILINEAR


# JPEG and PNG of 8-bit grey or RGB: torchvision decodes them without holding Python's lock, so that threads help; the
# pixels are Pillow's.
def _is_plain(source: Any, where: str) -> bool:
    head = bytes(source[:4096])
    if head.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR") and len(head) > 33:
        check_size((int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")), where)
        return head[24] == 8 and head[25] in (0, 2)
    at = 2 if head.startswith(b"\xff\xd8\xff") else len(head)
    while at + 9 < len(head) and head[at] == 0xFF:
        kind, length = head[at + 1], int.from_bytes(head[at + 2 : at + 4], "big")
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # the frame: precision, height, width, channels
            check_size((int.from_bytes(head[at + 7 : at + 9], "big"), int.from_bytes(head[at + 5 : at + 7], "big")), where)
            return head[at + 4] == 8 and head[at + 9] in (1, 3)
        at += 2 + length
    return False


def _decode_quickly(source: Any, where: str) -> Tensor:
    from torchvision.io import ImageReadMode, decode_image

    data = torch.from_numpy(np.frombuffer(source, dtype=np.uint8).copy())
    try:
        return decode_image(data, mode=ImageReadMode.RGB)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0].rpartition(": ")[2]
        raise UserError(f"The image {where} cannot be decoded ({reason}): it is damaged, fetch it again.") from error

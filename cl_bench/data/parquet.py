"""Labelled images in parquet files, as the Hugging Face hub keeps them."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .files import check_magic, existing_file, verify_digest
from .tensor import TensorData

__all__ = ["LabelledImages", "decode_image", "read_parquet"]


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """A data set and what its files say of it: class names by label (() if they say nothing)."""

    data: TensorData
    names: tuple[str, ...] = ()


def read_parquet(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    size: int | None = None,
    image: str = "image",
    label: str = "label",
    sha256: str | None = None,
    limit: int | None = None,
    threads: int | None = None,
) -> LabelledImages:
    """Images and labels of one or several parquet files: uint8 (N, 3, H, W), int64 (N,).

    The column `image` holds {bytes, path} with an encoded image (JPEG, PNG, anything Pillow reads; an empty `bytes`
    is read from `path`, relative to the file); `label` holds whole numbers. Class names come from the features in the
    schema's metadata.

    Args:
        path: a file, several, or a pattern such as "train-*.parquet" (its matches in order of name).
        size: side in pixels: short side resized (bilinear), centre cropped. None: images as they are, all of one size.
        sha256: expected digest, or its beginning, where `path` is one file.
        limit: read the first rows only.
        threads: that decode; the processor's count (at most 8) by default.

    Raises:
        UserError: files that are missing, truncated, web pages, or have other columns; an image that cannot be decoded.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = _files(path)
    if sha256 is not None:
        if len(files) != 1:
            raise UserError(f"sha256 checks one parquet file, {len(files)} were given: give one, or no sha256.")
        verify_digest(files[0], sha256)
    names: tuple[str, ...] = ()
    images: list[Tensor] = []
    labels: list[np.ndarray] = []
    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        for file in files:
            check_magic(file, "parquet")
            wanted = None if limit is None else limit - sum(map(len, labels))
            if wanted is not None and wanted <= 0:
                break
            try:
                table = pq.read_table(file)
            except (pa.ArrowInvalid, OSError) as error:
                raise UserError(
                    f'"{file}" cannot be read as parquet ({error}): it is damaged, fetch it again.'
                ) from error
            for column in (image, label):
                if column not in table.column_names:
                    raise UserError(
                        f'"{file}" has no column "{column}" but {", ".join(table.column_names)}: name the right one.'
                    )
            if wanted is not None:
                table = table.slice(0, wanted)
            names = names or _class_names(table.schema.metadata, label)
            labels.append(_labels(table.column(label), file, label))
            images.append(_decode_all(table.column(image), file, size, pool))
    x = torch.cat(images) if len({i.shape[1:] for i in images}) == 1 else _sizes_differ(files[0])
    return LabelledImages(TensorData(x, torch.from_numpy(np.concatenate(labels))), names)


def _files(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    if isinstance(path, (str, os.PathLike)):
        text = os.path.expanduser(os.fspath(path))
        if any(c in text for c in "*?["):
            found = [Path(p) for p in sorted(glob(text))]
            if not found:
                raise UserError(f'No file matches "{text}": check the pattern.')
            return found
        return [existing_file(text)]
    if not path:
        raise UserError("No parquet file was given: name at least one.")
    return [existing_file(p) for p in path]


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> tuple[str, ...]:
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return tuple(str(n) for n in features[label]["names"])
    except (ValueError, KeyError, TypeError):  # other writers keep other metadata, or none
        return ()


def _labels(column: Any, file: Path, name: str) -> np.ndarray:
    if column.null_count:
        raise UserError(f'"{file}" has {column.null_count} rows without "{name}": use a split that is labelled.')
    values = column.to_numpy()
    if values.dtype.kind not in "iu":
        raise UserError(
            f'Column "{name}" of "{file}" holds {column.type}, not whole numbers: name the column of labels.'
        )
    return values.astype(np.int64)


def _decode_all(column: Any, file: Path, size: int | None, pool: ThreadPoolExecutor) -> Tensor:
    import pyarrow as pa

    if not pa.types.is_struct(column.type) or column.type.get_field_index("bytes") < 0:
        raise UserError(
            f'The image column of "{file}" holds {column.type}, not {{bytes, path}}: name the right column.'
        )
    if len(column) == 0:
        raise UserError(f'"{file}" has no rows: fetch it again.')

    def encoded(chunk: Any) -> Iterator[tuple[Any, str | None]]:
        paths = chunk.field("path") if column.type.get_field_index("path") >= 0 else [None] * len(chunk)
        for data, path in zip(chunk.field("bytes"), paths, strict=True):
            yield data.as_buffer(), path.as_py() if path is not None else None

    rows = [row for chunk in column.chunks for row in encoded(chunk)]  # buffers point into the table: nothing is copied

    def one(row: int) -> Tensor:
        data, path = rows[row]
        if data is not None:
            return decode_image(data, size, f'row {row} of "{file}"')
        if not path:
            raise UserError(f'Row {row} of "{file}" holds neither bytes nor a path: fetch the file again.')
        return decode_image(existing_file(file.parent / path), size)

    first = one(0)
    out = first.new_empty(len(rows), *first.shape)

    def block(start: int) -> None:
        for row in range(start, min(start + 256, len(rows))):
            decoded = one(row)
            if decoded.shape != first.shape:
                _sizes_differ(file)
            out[row] = decoded

    for _ in pool.map(block, range(0, len(rows), 256)):  # raises what a thread raised
        pass
    return out


def _sizes_differ(file: Path) -> Tensor:
    raise UserError(f'Images of "{file}" differ in size: give size=, to which all are resized and cropped.')


# JPEG and PNG: torchvision decodes them without holding Python's lock, so that threads help; the pixels are Pillow's.
_QUICK = (b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe1", b"\xff\xd8\xff\xdb", b"\xff\xd8\xff\xee", b"\x89PNG")


def _decode_quickly(source: Any, name: str) -> Tensor:
    from torchvision.io import ImageReadMode, decode_image

    data = torch.from_numpy(np.frombuffer(source, dtype=np.uint8).copy())
    try:
        return decode_image(data, mode=ImageReadMode.RGB)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0].rpartition(": ")[2]
        raise UserError(f"The image {name} cannot be decoded ({reason}): it is damaged, fetch it again.") from error


def decode_image(source: Any, size: int | None = None, name: str = "", resize: int | None = None) -> Tensor:
    """One encoded image (bytes-like, or a path) as uint8 (3, H, W) in RGB.

    With `size` the short side is resized to `resize` (or `size`; bilinear, antialiased) and the centre cropped to a
    square, with the roundings of torchvision's `Resize` and `CenterCrop`. Raises `UserError` where Pillow cannot
    decode it, naming it.
    """
    if size is None and not isinstance(source, Path) and bytes(source[:4]) in _QUICK:
        return _decode_quickly(source, name)
    from PIL import Image

    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as opened:
            picture = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        where = name or source
        raise UserError(f"The image {where} cannot be decoded ({error}): it is damaged, fetch it again.") from error
    if size is not None:
        width, height = picture.size
        side = resize or size
        scaled = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
        if scaled != picture.size:
            picture = picture.resize(scaled, Image.Resampling.BILINEAR)
        left, top = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
        picture = picture.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)

"""Labelled images in parquet files, as the Hugging Face hub keeps them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .files import Bounds, below, check_magic, existing_file, verify_digest
from .labels import whole_labels
from .pixels import decode_image
from .tensor import TensorData

__all__ = ["LabelledImages", "decode_image", "read_parquet"]

# Column names of the data sets on the hub, in the order in which they are looked for.
IMAGES = ("image", "img", "jpg", "png", "webp", "picture")
LABELS = ("label", "labels", "fine_label", "class", "target", "cls")


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """A data set and what its files say of it: class names by label (() if they say nothing)."""

    data: TensorData
    names: tuple[str, ...] = ()


def read_parquet(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    size: int | None = None,
    image: str | Sequence[str] = IMAGES,
    label: str | Sequence[str] = LABELS,
    classes: int = 0,
    sha256: str | None = None,
    limit: int | None = None,
    threads: int | None = None,
) -> LabelledImages:
    """Images and labels of one or several parquet files: uint8 (N, 3, H, W), int64 (N,).

    The column `image` holds encoded images (JPEG, PNG, whatever `decode_image` reads) as bytes or as {bytes, path} (an
    empty `bytes` is read from `path`, below the file's folder); `label` holds whole numbers. Class names come from the
    features in the schema's metadata.

    Args:
        path: a file, several, or a pattern such as "train-*.parquet" (its matches in order of name).
        size: side in pixels: short side resized (bilinear), centre cropped. None: images as they are, all of one size.
        image, label: the columns; of several names the first that is there, by default those that the hub uses.
        classes: how many there are; 0 = as many as the metadata name, or unknown.
        sha256: expected digest, or its beginning, where `path` is one file.
        limit: read the first rows only.
        threads: that decode; the processor's count (at most 8) by default.

    Raises:
        UserError: files that are missing, truncated, web pages, or have other columns; an image that cannot be decoded.
    """
    import pyarrow.parquet as pq

    files = _files(path)
    if limit is not None and limit < 1:
        raise UserError(f"limit must be 1 or more rows, not {limit}.")
    if sha256 is not None:
        if len(files) != 1:
            raise UserError(f"sha256 checks one parquet file, {len(files)} were given: give one, or no sha256.")
        verify_digest(files[0], sha256)
    names: tuple[str, ...] = ()
    images: list[Tensor] = []
    labels: list[Tensor] = []
    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        for file in files:
            check_magic(file, "parquet")
            wanted = None if limit is None else limit - sum(map(len, labels))
            if wanted is not None and wanted <= 0:
                break
            try:
                schema = pq.read_schema(file)
                pixels, marks = (_column(schema.names, given, file) for given in (image, label))
                table = pq.read_table(file, columns=[pixels, marks])
            except UserError:
                raise
            except Exception as error:  # pyarrow's own errors have many bases
                raise UserError(f'"{file}" cannot be read as parquet ({error}): it is damaged, fetch it again.') from error
            if wanted is not None:
                table = table.slice(0, wanted)
            names = names or _class_names(schema.metadata, marks)
            labels.append(_labels(table.column(marks), file, marks, classes or len(names)))
            images.append(_decode_all(table.column(pixels), file, size, pool))
    x = torch.cat(images) if len({i.shape[1:] for i in images}) == 1 else _sizes_differ(files[0])
    return LabelledImages(TensorData(x, torch.cat(labels)), names)


def _column(there: Sequence[str], wanted: str | Sequence[str], file: Path) -> str:
    names = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    found = next((name for name in names if name in there), None)
    if found is None:
        looked = " or ".join(f'"{name}"' for name in names)
        raise UserError(f'"{file}" has no column {looked} but {", ".join(there)}: name the right one.')
    return found


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


def _labels(column: Any, file: Path, name: str, classes: int) -> Tensor:
    import pyarrow as pa

    if column.null_count:
        raise UserError(f'"{file}" has {column.null_count} rows without "{name}": use a split that is labelled.')
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise UserError(
            f'Column "{name}" of "{file}" holds {column.type}, not whole numbers: name the column of labels.'
        )
    return whole_labels(column.to_numpy(), f'column "{name}" of "{file}"', classes)


def _decode_all(column: Any, file: Path, size: int | None, pool: ThreadPoolExecutor) -> Tensor:
    import pyarrow as pa

    kind = column.type
    bare = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if not bare and (not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0):
        raise UserError(f'The image column of "{file}" holds {kind}, not encoded images: name the right column.')
    if len(column) == 0:
        raise UserError(f'"{file}" has no rows: fetch it again.')

    def encoded(chunk: Any) -> Iterator[tuple[Any, str | None]]:
        paths = chunk.field("path") if not bare and kind.get_field_index("path") >= 0 else [None] * len(chunk)
        for data, path in zip(chunk if bare else chunk.field("bytes"), paths, strict=True):
            yield data.as_buffer(), path.as_py() if path is not None else None

    bounds = Bounds(file.parent)
    rows = [row for chunk in column.chunks for row in encoded(chunk)]  # buffers point into the table: nothing is copied

    def one(row: int) -> Tensor:
        data, path = rows[row]
        if data is not None:
            return decode_image(data, size, f'row {row} of "{file}"')
        if not path:
            raise UserError(f'Row {row} of "{file}" holds neither bytes nor a path: fetch the file again.')
        return decode_image(bounds.check(existing_file(below(file.parent, str(path), f'row {row} of "{file}"'))), size)

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

"""Whether the parts of one record fit together: counts and predictions, metrics and counts, a fingerprint and its fields.

No one who edits a number by hand gets past this; who edits all of them alike is found by running it again (`cl-bench
verify`).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

from ..errors import UserError
from ..identity import protocol_id
from ..numbers.metrics import metrics_of
from .results import Run

__all__ = ["answers_digest", "bounded_arrays", "contradictions", "record_digest", "uncounted"]

LARGEST_ARRAYS = 1 << 30  # bytes of all arrays of a run, unpacked


def bounded_arrays(file: str | IO[bytes] | Any, limit: int = LARGEST_ARRAYS) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` of unknown origin: plain numbers, no more bytes than ``limit``, no array larger than its data.

    Raises:
        UserError: where it is damaged, or holds anything else.
    """
    out: dict[str, np.ndarray] = {}
    left = limit
    try:
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                with archive.open(info) as member:
                    data = member.read(left + 1)
                if len(data) > left:
                    raise UserError(f"arrays.npz holds more than {limit >> 20} MiB; no record does.")
                left -= len(data)
                name = info.filename.removesuffix(".npy")
                if name in out:
                    raise UserError(f"arrays.npz holds {name[:80]!r} twice.")
                out[name] = _array(data, name)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError, MemoryError) as fault:
        raise UserError(f"arrays.npz is damaged ({fault}).") from fault
    return out


def _array(data: bytes, name: str) -> np.ndarray:
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(stream, max_header_size=10_000)
    body = data[stream.tell():]
    if dtype.kind not in "biuf" or math.prod(shape) * dtype.itemsize != len(body):
        raise UserError(f"arrays.npz holds {name[:80]!r}, which is no plain array of numbers.")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")


def answers_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Digest of all predictions and truths by name, whatever integer type holds them: 16 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name])
        plain = values.astype("<i8") if values.dtype.kind in "biu" else values.astype("<f8")
        digest.update(f"{name} {plain.shape} {plain.dtype}\n".encode() + plain.tobytes())
    return digest.hexdigest()[:16]


def record_digest(record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """Digest of everything a record claims; a verification is bound to it: 16 hex digits."""
    text = json.dumps(record, sort_keys=True, ensure_ascii=True) + answers_digest(arrays)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def contradictions(run: Run, arrays: Mapping[str, np.ndarray], finished: bool = True) -> list[str]:
    """One sentence for each part of a record that another part of it belies; empty where all fit. A run that did not
    finish keeps no predictions."""
    return [*_fingerprint(run), *(_counts(run, arrays) if finished else ()), *(_streamed(run, arrays) if finished else ()),
            *_metrics(run)]


def uncounted(run: Run, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether a record claims counts without the predictions to count again."""
    return (bool(run.matrix.total.any()) or len(run.stream) > 0) and not any(k.startswith("truth/") for k in arrays)


def _fingerprint(run: Run) -> list[str]:
    told = run.record["fingerprint"]
    if not isinstance(fields := told.get("fields"), Mapping):
        return ["its fingerprint has no fields"]
    if (right := protocol_id(fields)) != told["id"]:
        return [f"its fingerprint is {told['id']} and its fields make {right}"]
    if fields.get("scenario") != run.scenario or fields.get("backbone") != run.backbone:
        return [f"its fingerprint is of {fields.get('scenario')} on {fields.get('backbone')}, the record of {run.scenario} "
                f"on {run.backbone}"]
    return []


def _counts(run: Run, arrays: Mapping[str, np.ndarray]) -> list[str]:
    matrix, found = run.matrix, []
    if uncounted(run, arrays):
        return []
    for i, row in enumerate(matrix.rows):
        if row in matrix.rows[i + 1:]:
            continue  # predictions are kept by name: of rows that share one, the last's
        for j, column in enumerate(matrix.columns):
            if not matrix.total[i, j]:
                continue
            counted = _right(arrays, f"{row}/{column}", f"truth/{column}")
            claimed = (int(matrix.correct[i, j]), int(matrix.total[i, j]))
            if counted != claimed:
                found.append(f"cell ({row}, {column}) claims {claimed[0]} of {claimed[1]} and its predictions "
                             + (f"give {counted[0]} of {counted[1]}" if counted else "are not there"))
    return found


def _streamed(run: Run, arrays: Mapping[str, np.ndarray]) -> list[str]:
    keys = [k for k in arrays if k.startswith("stream/")]
    if not len(run.stream) or uncounted(run, arrays):
        return []
    pairs = [_right(arrays, key, f"truth/{key}") for key in keys]
    counted = [sum(pair[k] for pair in pairs if pair) for k in (0, 1)]
    claimed = [sum(getattr(e, word) for e in run.stream.entries) for word in ("correct", "total")]
    if None in pairs or counted != claimed:
        return [f"its stream claims {claimed[0]} of {claimed[1]} right and its predictions give {counted[0]} of {counted[1]}"]
    by_name = {key.split("/", 2)[2]: pair for key, pair in zip(keys, pairs, strict=True)}
    if len(by_name) == len(keys):  # segments that do not mix domains can be counted one by one
        return [f"the stream's {e.name} claims {e.correct} of {e.total} right and its predictions give {pair[0]} of {pair[1]}"
                for e in run.stream.entries if (pair := by_name.get(e.name)) and (e.correct, e.total) != pair]
    return []


def _right(arrays: Mapping[str, np.ndarray], key: str, truth: str) -> tuple[int, int] | None:
    if key not in arrays or truth not in arrays or arrays[key].shape != arrays[truth].shape:
        return None
    return int((arrays[key] == arrays[truth]).sum()), int(arrays[key].size)


def _metrics(run: Run) -> list[str]:
    """Metrics that the record claims and its counts do not give; those of other distributions are not known everywhere."""
    found, made = [], metrics_of(run.matrix, run.stream, run.record)
    for name, claimed in run.record["metrics"].items():
        if name not in made:
            continue
        right = made[name]
        same = claimed is right if claimed is None or right is None else (
            isinstance(claimed, (int, float)) and math.isclose(claimed, right, rel_tol=1e-9, abs_tol=1e-9))
        if not same:
            found.append(f"{name} is {claimed} and its counts give {right}")
    return found

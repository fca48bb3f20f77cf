"""Writing one run's folder: what is there is touched only when nothing speaks against it, and never in part."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import UserError
from .lock import RunLock

__all__ = ["SCHEMA", "STATUSES", "RunWriter", "check_id", "complete", "new_id", "plain", "utc_now", "write_atomically"]

SCHEMA = 1
STATUSES = ("running", "finished", "failed", "stopped")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,149}\Z")
# What a writer that was killed may leave beside the files that it was about to replace.
_LEFT_OVER = re.compile(r"\.(run\.json|events\.jsonl|arrays\.npz|DONE|checkpoint(\.\w+)?)[.-][0-9a-f]+(\.[0-9a-f]+)?\Z")
_IN_CHECKPOINT = re.compile(r"\.(state\.json|[\w-]+\.safetensors)\.[0-9]+\.[0-9a-f]+\Z")


def utc_now() -> str:
    """Now, ISO 8601 in UTC with seconds."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def check_id(run_id: str) -> str:
    """The id itself where it is a plain folder name; raises UserError for one that could leave the folder of runs."""
    if not isinstance(run_id, str) or not _ID.match(run_id) or ".." in run_id:
        raise UserError(f"A run's id may hold letters, digits, '.', '_' and '-' and must start with a letter or digit, "
                        f"not {str(run_id)[:80]!r}.")
    return run_id


def new_id(scenario: str, method: str, seed: int, order: int | None = None) -> str:
    """A new id that sorts by time: ``20260131-142530-split_digits-codyra-s0-1f3a9c`` (``-o2`` for class order 2)."""
    def clean(text: str) -> str:
        return re.sub(r"[^A-Za-z0-9_]+", "_", text).strip("_")[:40] or "x"
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    where = "" if order is None else f"-o{int(order)}"
    return check_id(f"{stamp}-{clean(scenario)}-{clean(method)}-s{int(seed)}{where}-{uuid.uuid4().hex[:6]}")


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: numpy to lists and numbers, paths to text, non-finite numbers to None.

    Raises TypeError for an object that has no plain form, naming its type."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (set, frozenset)):
        return sorted((plain(v) for v in value), key=str)
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (Path, datetime)):
        return str(value)
    raise TypeError(f"a record cannot hold {type(value).__name__}: {str(value)[:80]}")


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` so that a reader, or a crash, sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:6]}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class RunWriter:
    """Writes one run's folder, ``runs/<id>``; it is made where missing, and its last part is the id.

    Everything that speaks against writing is asked first: another writer (:mod:`.lock`), a finished run, a folder that
    cannot be written. Until the first call of a method nothing that the folder holds has changed, but for what a
    writer that was killed left half done.

    Attributes:
        previous: the record that was there, None in a new folder: where a run that goes on begins.

    Raises:
        UserError: with the reason, before anything is touched.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        check_id(self.folder.name)
        _refuse_finished(self.folder)
        self._lock = _locked(self.folder)
        try:
            self.previous = _record(self.folder)
            if (self.previous or {}).get("status") == "finished":  # killed just before its mark
                _finish(self.folder, self._lock)
            _refuse_finished(self.folder)
            _clean(self.folder)
        except BaseException:
            self._lock.release()
            raise
        self._path = self.folder / "events.jsonl"
        self._events: IO[bytes] | None = None
        self._born, self._closed = time.monotonic(), False

    def write(self, run: Mapping[str, Any]) -> None:
        """Replace ``run.json``; ``schema`` is filled in, ``id`` must be the folder's name."""
        record = {"schema": SCHEMA, "id": self.folder.name, **plain(run)}
        if record["id"] != self.folder.name:
            raise ValueError(f"record of run {record['id']!r} written to folder {self.folder.name!r}")
        if record.get("status") not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, not {record.get('status')!r}")
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, indent=1)
        write_atomically(self.folder / "run.json", text.encode())

    def event(self, **values: Any) -> None:
        """Append one line to ``events.jsonl``; needs ``kind=``. ``t=``, seconds since the run began, is by default the
        time since this writer began, by a clock that is never set back."""
        if "kind" not in values:
            raise ValueError("an event needs kind=")
        if "t" not in values:
            values["t"] = round(time.monotonic() - self._born, 4)
        self._append(json.dumps(plain(values), ensure_ascii=False, allow_nan=False).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        file = self._opened()
        before, left = os.fstat(file.fileno()).st_size, memoryview(line)
        try:
            while left:
                left = left[file.write(left):]
        except BaseException:  # a full disk takes half a line: what follows must not be glued to it
            os.truncate(file.fileno(), before)
            raise

    def _opened(self) -> IO[bytes]:
        if self._closed:
            raise ValueError(f"the events of {self.folder} are closed")
        if self._events is None:
            self._events = open(self._path, "a+b", buffering=0)  # noqa: SIM115
            size = os.fstat(self._events.fileno()).st_size
            if (whole := _whole_lines(self._path, size)) < size:  # of a process that was killed while it wrote
                os.truncate(self._events.fileno(), whole)
        return self._events

    def events_offset(self) -> int:
        """Length of the events so far, on disk for good: what a checkpoint keeps to cut back to."""
        file = self._opened()
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size

    def cut_events(self, offset: int) -> None:
        """Forget the events after ``offset``, of work that is done again. Where fewer are there (the disk lost some),
        an event says so."""
        file = self._opened()
        size = os.fstat(file.fileno()).st_size
        os.truncate(file.fileno(), _whole_lines(self._path, min(offset, size)))
        if size < offset:
            self.event(kind="error", message=f"{offset - size} bytes of events before this point were lost.")

    def arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace ``arrays.npz`` (compressed, no pickles: an object array raises ValueError)."""
        buffer = io.BytesIO()
        values = {name: np.asarray(array) for name, array in arrays.items()}
        if wrong := [name for name, array in values.items() if array.dtype.hasobject]:
            raise ValueError(f"object arrays cannot be recorded: {', '.join(wrong)}")
        np.savez_compressed(buffer, **values)  # type: ignore[arg-type]
        write_atomically(self.folder / "arrays.npz", buffer.getvalue())

    def done(self) -> None:
        """Close the events and write the empty ``DONE``: the run is complete."""
        self._close_events()
        _mark(self.folder, self._lock)

    def close(self) -> None:
        """Close the events and give the folder up; without ``DONE`` the run failed, was stopped, or goes on later."""
        try:
            self._close_events()
        finally:
            self._lock.release()

    def _close_events(self) -> None:
        self._closed = True
        if self._events is not None:
            os.fsync(self._events.fileno())
            self._events.close()
            self._events = None

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def complete(folder: str | Path) -> bool:
    """Whether the run is over; one that was killed between its last record and ``DONE`` gets what it lacks.

    Raises:
        UserError: where a live process is writing it.
    """
    folder = Path(folder)
    if (folder / "DONE").exists():
        return True
    if (_record(folder) or {}).get("status") != "finished":
        return False
    lock = _locked(folder)
    try:
        _finish(folder, lock)
    finally:
        lock.release()
    return True


def _finish(folder: Path, lock: RunLock) -> None:
    """The end of a run that is in its record and not yet in its folder; the lock is held, and given up for the mark."""
    _clean(folder)
    path, record = folder / "events.jsonl", _record(folder) or {}
    with open(path, "a+b") as file:
        os.truncate(file.fileno(), _whole_lines(path, os.fstat(file.fileno()).st_size))
        file.seek(0)
        if not any(b'"kind": "finish"' in line for line in file):
            seconds = ((record.get("cost") or {}).get("seconds") or {}).get("total", 0.0)
            file.write(json.dumps({"kind": "finish", "t": seconds}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    _mark(folder, lock)


def _mark(folder: Path, lock: RunLock) -> None:
    """The very last: a process that is killed before it leaves no mark, one killed after it no lock. In between anybody may
    set the mark, since the record says that the run has finished; an empty file is whole once it is there."""
    lock.release()
    with open(folder / "DONE", "ab") as file:
        os.fsync(file.fileno())


def _refuse_finished(folder: Path) -> None:
    if (folder / "DONE").exists():
        raise UserError(f"{folder} already holds a finished run: choose another id or remove the folder.")


def _locked(folder: Path) -> RunLock:
    """The lock of a folder, which is made where missing; one sentence where either cannot be."""
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return RunLock(folder)
    except OSError as error:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise UserError(f"Cannot write to {folder} ({error.strerror}): choose a folder that you may write to.") from error


def _record(folder: Path) -> dict[str, Any] | None:
    """``run.json`` as it stands; whether it is whole is asked by whoever reads it for its numbers."""
    try:
        record = json.loads((folder / "run.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _clean(folder: Path) -> None:
    """Remove what a writer that was killed left half done; the lock is held, so nobody is at it."""
    inside = folder / "checkpoint"
    for path in [*folder.iterdir(), *(inside.iterdir() if inside.is_dir() and not inside.is_symlink() else ())]:
        if (_LEFT_OVER if path.parent == folder else _IN_CHECKPOINT).match(path.name):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _whole_lines(path: Path, end: int) -> int:
    """Where the last whole line before ``end`` ends."""
    with open(path, "rb") as file:
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            if (at := file.read(end - start).rfind(b"\n")) >= 0:
                return start + at + 1
            end = start
    return 0

"""Records of runs on disk: the truth that tables, pages and trackers are made from.

``runs/<id>/`` holds ``run.json`` (one JSON object, schema versioned), ``events.jsonl`` (one object per line, in time),
``arrays.npz`` (accuracy matrix, curves) and, last of all, an empty ``DONE``; ``LOCK`` while somebody writes. ``run.json``
and ``arrays.npz`` are replaced atomically (temporary file, fsync, rename): a reader never sees half of one. Numbers that
are not finite are written as null, never as NaN, so that any JSON reader can read them. :mod:`.writer` writes them, this
module reads.

No torch here: a table of thousands of runs opens in a second.
"""

from __future__ import annotations

import gc
import io
import json
import math
import os
import platform
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..numbers.matrix import AccuracyMatrix, Stream
from ..numbers.metrics import metrics_of
from .source_digest import UNKNOWN, code_digest
from .writer import SCHEMA, STATUSES, RunWriter, check_id, complete, new_id, plain, utc_now, write_atomically

__all__ = ["SCHEMA", "STATUSES", "Run", "RunList", "RunWriter", "check_id", "complete", "environment", "git_state", "load",
           "load_all", "new_id", "plain", "run_folders", "uncollected", "utc_now", "versions", "write_atomically"]

PACKAGES = ("cl-bench", "torch", "torchvision", "timm", "open-clip-torch", "avalanche-lib", "pytorch-lightning",
            "mlflow", "peft", "numpy", "scipy")
COMPUTING = ("torch", "torchvision", "timm", "open-clip-torch", "numpy")  # of which another version may give other bits
_NEEDED = {"id": str, "status": str, "scenario": dict, "method": dict, "seed": int, "fingerprint": dict,
           "metrics": dict}
_PARTS = ("backbone", "config", "cost", "environment")  # mappings, in records that have them


# -- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One run as recorded; ``record`` is ``run.json``, what is heavy is read when asked for."""

    folder: Path
    record: dict[str, Any]
    done: bool

    @property
    def id(self) -> str:
        return str(self.record["id"])

    @property
    def status(self) -> str:
        """``running`` (or killed: no end was written), ``finished``, ``failed`` or ``stopped``."""
        status = str(self.record["status"])
        return "running" if status == "finished" and not self.done else status

    @property
    def scenario(self) -> str:
        return str(self.record["scenario"]["name"])
    @property
    def kind(self) -> str:
        """``learn``, ``stream`` or ``deployed``."""
        return str(self.record["scenario"].get("kind", "learn"))

    @property
    def backbone(self) -> str:
        return str((self.record.get("backbone") or {}).get("name", ""))

    @property
    def method(self) -> str:
        """The method's label: its name and the arguments that were changed."""
        method = self.record["method"]
        return str(method.get("label") or method["name"])

    @property
    def seed(self) -> int:
        return int(self.record["seed"])

    @property
    def order(self) -> int | None:
        value = self.record.get("order")
        return None if value is None else int(value)

    @property
    def source_digest(self) -> str:
        """Digest of the source of the run's method; ``unknown`` equals nothing (:func:`.source_digest.same`)."""
        return str(self.record["method"].get("source_digest") or UNKNOWN)

    @property
    def fingerprint(self) -> str:
        return str(self.record["fingerprint"]["id"])

    @cached_property
    def matrix(self) -> AccuracyMatrix:
        """The accuracy matrix (one without rows where the run has none)."""
        return AccuracyMatrix.from_json(self.record.get("matrix") or {"rows": [], "columns": [], "correct": [],
                                                                      "total": []})

    @cached_property
    def stream(self) -> Stream:
        return Stream.from_json(self.record.get("stream") or [])

    @cached_property
    def metrics(self) -> dict[str, float | None]:
        """Recorded metrics (percent or points), completed by those that the record has what it takes for."""
        given = self.record["metrics"]
        values = {name: float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
                  for name, value in given.items()}
        return values | metrics_of(self.matrix.so_far(), self.stream, self.record, but=given)

    def events(self) -> Iterator[dict[str, Any]]:
        """The events in time, read lazily; a torn last line (of a run that was killed) is left out."""
        path = self.folder / "events.jsonl"
        if not path.exists():
            return
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    event = json.loads(line)
                except (ValueError, RecursionError):  # ValueError: also a number of thousands of digits
                    if line.endswith("\n"):
                        yield {"kind": "error", "text": f"unreadable line in events.jsonl: {line[:80]!r}"}
                    continue
                if isinstance(event, dict):
                    yield event

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array of ``arrays.npz``, if any. Raises UserError for a damaged file."""
        path = self.folder / "arrays.npz"
        if not path.exists():
            return {}
        try:
            with open(path, "rb") as opened:
                raw = opened.read()
            with zipfile.ZipFile(io.BytesIO(raw)) as file:
                return {member.filename.removesuffix(".npy"): _array(_member(raw, member)) for member in file.infolist()}
        except (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error,
                struct.error) as error:
            raise UserError(f"{path} is damaged ({error}): run it again, or remove the file.") from error


@lru_cache(maxsize=4096)
def _header(text: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type from the first bytes of a ``.npy``; of thousands of runs they are the same few."""
    stream = io.BytesIO(text)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds objects, not numbers")
    return shape, fortran, dtype


def _member(raw: bytes, member: zipfile.ZipInfo) -> bytes:
    """One file of an archive that is in memory; :mod:`zipfile` takes ten times as long for as little."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
        raise ValueError(f"{member.filename} is packed in a way that numpy does not use")
    start = member.header_offset + 30 + sum(struct.unpack_from("<HH", raw, member.header_offset + 26))
    body = raw[start:start + member.compress_size]
    data = zlib.decompress(body, -15) if member.compress_type == zipfile.ZIP_DEFLATED else body
    if zlib.crc32(data) != member.CRC:
        raise zipfile.BadZipFile(f"{member.filename} is not what its check sum says")
    return data


def _array(data: bytes) -> np.ndarray:
    """One member of an ``.npz``, as ``numpy.load`` reads it."""
    start = 10 + int.from_bytes(data[8:10], "little") if data[6:7] == b"\1" else 12 + int.from_bytes(data[8:12], "little")
    shape, fortran, dtype = _header(data[:start])
    return np.frombuffer(bytearray(data), dtype, math.prod(shape), start).reshape(shape, order="F" if fortran else "C")


class RunList(list[Run]):
    """Runs in order of their ids; ``problems`` holds one sentence per folder that could not be read."""

    def __init__(self, runs: Iterable[Run] = (), problems: Iterable[str] = ()) -> None:
        super().__init__(runs)
        self.problems = list(problems)


def _check(record: Any, path: Path) -> dict[str, Any]:
    """The record where it can be used; raises UserError naming what is missing."""
    if not isinstance(record, dict):
        raise UserError(f"{path} is not a record of a run: it holds {type(record).__name__}, not an object.")
    schema = record.get("schema")
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        advice = "upgrade cl-bench" if newer else "run it again"
        raise UserError(f"{path} has schema {schema!r} and this cl-bench reads schema {SCHEMA}: {advice}.")
    for name, kind in _NEEDED.items():
        if not isinstance(record.get(name), kind):
            raise UserError(f"{path} lacks '{name}' (or it is not of the right type): run it again.")
    for name in _PARTS:
        if not isinstance(record.get(name, {}), dict | None):
            raise UserError(f"{path} has a '{name}' that is no object: run it again.")
    for part, key in (("scenario", "name"), ("method", "name"), ("fingerprint", "id")):
        if not isinstance(record[part].get(key), str):
            raise UserError(f"{path} lacks '{part}.{key}': run it again.")
    check_id(record["id"])
    return record


def load(path: str | Path) -> Run:
    """One run, from its folder or its ``run.json``. Raises UserError with one sentence where that is not possible."""
    path = Path(path)
    return _load(path.parent if path.name == "run.json" else path)


def _load(folder: Path) -> Run:
    """:func:`load` of a folder. Ten thousand are read at once: places are text as long as nothing is wrong."""
    file, place = folder / "run.json", str(folder)
    try:
        with open(f"{place}/run.json", "rb") as opened:
            record = json.loads(opened.read())
    except FileNotFoundError:
        raise UserError(f"{folder} holds no run (no run.json in it).") from None
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        raise UserError(f"{file} is damaged, not valid JSON ({error}): remove its folder, or run it again.") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}).") from None
    run = Run(folder, _check(record, file), os.path.exists(f"{place}/DONE"))
    try:
        _ = run.matrix, run.stream, run.order
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file} holds numbers that do not fit together ({error}): run it again.") from None
    return run


def run_folders(folder: str, depth: int = 3) -> Iterator[str]:
    """Folders that hold (part of) a run, at most ``depth`` levels down; hidden ones and links are left out."""
    with os.scandir(folder) as found:
        entries = list(found)
    if any(e.name in ("run.json", "events.jsonl", "LOCK") for e in entries):
        yield folder
        return
    for entry in sorted(entries, key=lambda e: e.name) if depth else ():
        if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
            yield from run_folders(entry.path, depth - 1)


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the search for garbage in circles, of which reading and importing make next to none: it would take a third of the
    time over ten thousand records, and a sixth of importing torch."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@uncollected()
def load_all(folders: str | Path | Iterable[str | Path]) -> RunList:
    """Every run in or below the given paths (a folder of runs, a run's folder, or a ``run.json``). A run that cannot be
    read becomes a sentence in ``.problems``; a path that does not exist raises UserError."""
    runs: dict[str, Run] = {}
    problems: list[str] = []
    seen: set[str] = set()
    for given in map(Path, [folders] if isinstance(folders, (str, Path)) else folders):
        if not given.exists():
            raise UserError(f"{given} does not exist: give a folder of runs, or one run's folder.")
        try:
            found = list(run_folders(str(given))) if given.is_dir() else [str(given.parent)]
        except OSError as error:
            problems.append(f"{error.filename} cannot be read ({error.strerror}).")
            continue
        root, start = os.path.realpath(found[0]) if len(found) == 1 else os.path.realpath(given), len(str(given))
        for folder in found:
            real = root if len(found) == 1 else root + folder[start:]  # no link leads further down
            if real in seen:
                continue
            seen.add(real)
            try:
                run = _load(Path(folder))
            except UserError as error:
                problems.append(str(error))
                continue
            if runs.setdefault(run.id, run) is not run:
                problems.append(f"{folder} repeats run {run.id} of {runs[run.id].folder}: the second is left out.")
    return RunList((runs[key] for key in sorted(runs)), problems)


# -- the surroundings of a run ----------------------------------------------------------------------------------------

def git_state(folder: str | Path | None = None) -> dict[str, Any]:
    """``{"commit": hex | None, "dirty": bool | None}`` of the checkout that holds this code (or ``folder``)."""
    where = Path(folder) if folder is not None else Path(__file__).resolve().parent

    def git(*args: str) -> str | None:
        try:
            run = subprocess.run(["git", "-C", str(where), *args], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return run.stdout.strip() if run.returncode == 0 else None

    # An installed copy may lie inside somebody else's checkout: only a tracked file tells which code this is.
    if folder is None and not git("ls-files", Path(__file__).name):
        return {"commit": None, "dirty": None}
    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def environment(device: str = "cpu", threads: int | None = None, ops_backend: str | None = None,
                card: str | None = None) -> dict[str, Any]:
    """What a run ran on: python, platform, processor, device, the card's model where it is a GPU, threads, package versions
    (None = not installed), git, code, ops."""
    packages = versions(PACKAGES)
    return {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}",
            "implementation": sys.implementation.name, "device": device, "card": card, "threads": threads, "packages": packages,
            "processor": _processor(), "git": git_state(), "code_digest": code_digest(), "ops_backend": ops_backend}


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """What is installed of some packages; None: not."""
    return {name: _version(name) for name in packages}


def _processor() -> str:
    """The processor's model: the last bit of a sum depends on it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            found = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    except OSError:
        found = ""  # no /proc on this platform
    return found or platform.processor() or platform.machine()

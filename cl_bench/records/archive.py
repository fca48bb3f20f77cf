"""Records as one file to share, and back: nothing in it tells who or where, nothing from it leaves the folder it goes to."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
import uuid
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..errors import UserError
from .audit import answers_digest, bounded_arrays, contradictions, record_digest, uncounted
from .privacy import clean, clean_event, findings, names_of_this_machine
from .results import Run, load, load_all
from .writer import check_id, plain

__all__ = ["FORMAT", "Archive", "Imported", "export", "import_archive", "unpacked"]

FORMAT = 1
MANIFEST = "archive.json"
# Bytes unpacked, by file: what no record comes near.
LARGEST = {"run.json": 64 << 20, "events.jsonl": 256 << 20, "arrays.npz": 512 << 20, "DONE": 0, MANIFEST: 64 << 20}
LARGEST_WHOLE, LARGEST_RATIO = 64 << 20, 100  # unpacked at most so much, and so many times what is packed
MOST_RUNS = 100_000
STALE = 86_400.0  # seconds after which an import is not going on any more


@dataclass(frozen=True)
class Archive:
    """What an archive says of itself. ``about``: what its maker chose to say (by, url, note); ``sha256``: of the file."""

    path: Path
    sha256: str
    made_with: str
    about: Mapping[str, str]
    runs: tuple[str, ...]


@dataclass
class Imported:
    """Folders that were made; what was here already; sentences on runs that repeat others or cannot be counted again."""

    folders: list[Path] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


# -- out --------------------------------------------------------------------------------------------------------------


def export(runs: Sequence[Run], out: Path, names: Collection[str], about: Mapping[str, str] | None = None) -> Path:
    """Write the records of ``runs`` to the archive ``out``; the same records make the same bytes.

    ``names`` are taken out of them, with every absolute path; what was made is searched for both before it is written.

    Raises:
        UserError: where a record cannot be cleaned or contradicts itself, or the file cannot be written.
    """
    said = {key: value for key, value in (about or {}).items() if value}
    files: dict[str, bytes] = {}
    for run in runs:
        files |= _packed(run, names)
    digests: dict[str, dict[str, str]] = {}
    for name, data in files.items():
        run_id, _, file = name.partition("/")
        digests.setdefault(run_id, {})[file] = hashlib.sha256(data).hexdigest()
    manifest = {"format": FORMAT, "made_with": f"cl-bench {__version__}", "about": said, "runs": digests}
    files = {MANIFEST: _json(manifest), **files}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:6]}")
        try:
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
                for name in files:
                    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                    info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                    archive.writestr(info, files[name])
            os.replace(temporary, out)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as fault:
        raise UserError(f"cannot write {out} ({fault.strerror}); choose another place with -o.") from fault
    return out


def _json(value: Any) -> bytes:
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=1).encode()


def _packed(run: Run, names: Collection[str]) -> dict[str, bytes]:
    """The files of one run, cleaned, and read again to be sure of it."""
    arrays = run.arrays()
    if run.status == "finished" and (wrong := contradictions(run, arrays)):
        raise UserError(f"{run.folder} contradicts itself: {wrong[0]}; it cannot be shared.")
    record = clean(run.record, names)
    lines = [clean_event(event, names, run.record) for event in run.events()]
    told = [*findings(list(arrays), names, "arrays.npz")]
    if told:
        raise UserError(f"{run.folder} would tell {told[0][1]!r} in {told[0][0]}; rename it and run again.")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    events = b"".join(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n" for line in lines)
    made = {"run.json": _json(record), "events.jsonl": events, "arrays.npz": buffer.getvalue()}
    for file, data in made.items():
        if len(data) > LARGEST[file]:
            raise UserError(f"{file} of {run.id} is larger than the {LARGEST[file] >> 20} MiB that an archive may hold of it.")
    return {f"{run.id}/{name}": data for name, data in made.items()} | ({f"{run.id}/DONE": b""} if run.done else {})


# -- in ---------------------------------------------------------------------------------------------------------------


def unpacked(path: Path, folder: Path) -> Archive:
    """Check an archive of unknown origin and write its runs into the empty ``folder``, one folder each.

    Raises:
        UserError: in one sentence, for a file that is no archive of records, is larger than records are, names a file
            outside of a run's folder, or holds a record that is damaged, contradicts itself or is not what its digest says.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = _manifest(archive, path)
            digests = _listed(archive, manifest, path)
            left = LARGEST_WHOLE + LARGEST_RATIO * path.stat().st_size
            for run_id, files in digests.items():
                (folder / run_id).mkdir()
                for name, digest in files.items():
                    data = _read(archive, f"{run_id}/{name}", min(LARGEST[name], left), path)
                    left -= len(data)
                    if hashlib.sha256(data).hexdigest() != digest:
                        raise UserError(f"{path} is damaged: {run_id}/{name} is not what its digest says.")
                    (folder / run_id / name).write_bytes(data)
                _sound(folder / run_id, path)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, RuntimeError) as fault:
        raise UserError(f"{path} is no archive that can be read ({fault}).") from fault
    except OSError as fault:
        raise UserError(f"{path} cannot be read ({fault.strerror or fault}).") from fault
    about = found if isinstance(found := manifest.get("about"), dict) else {}
    said = {key: str(about.get(key) or "")[:2000] for key in ("by", "url", "note")}
    return Archive(path, _sha256(path), str(manifest.get("made_with", ""))[:80], said, tuple(digests))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _manifest(archive: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    if MANIFEST not in archive.namelist():
        raise UserError(f"{path} is no archive of records: it has no {MANIFEST}; `cl-bench export` makes one.")
    try:
        manifest = json.loads(_read(archive, MANIFEST, LARGEST[MANIFEST], path))
    except (ValueError, RecursionError) as fault:
        raise UserError(f"{path} is damaged: its {MANIFEST} is not JSON.") from fault
    if not isinstance(manifest, dict) or not isinstance(manifest.get("runs"), dict):
        raise UserError(f"{path} is damaged: its {MANIFEST} lists no runs.")
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path} has format {str(manifest.get('format'))[:20]} and this cl-bench reads format {FORMAT}.")
    return manifest


def _listed(archive: zipfile.ZipFile, manifest: Mapping[str, Any], path: Path) -> dict[str, dict[str, str]]:
    """The files of each run, where the list and the archive are of one mind and no name leads elsewhere."""
    runs = manifest["runs"]
    if not 0 < len(runs) <= MOST_RUNS:
        raise UserError(f"{path} lists {len(runs)} runs; an archive holds from 1 to {MOST_RUNS:,}.")
    wanted = {MANIFEST}
    for run_id, files in runs.items():
        check_id(run_id)
        if not isinstance(files, dict) or not {"run.json", "events.jsonl", "arrays.npz"} <= set(files) <= set(LARGEST):
            raise UserError(f"{path} is damaged: its list names no whole record for {run_id}.")
        wanted |= {f"{run_id}/{name}" for name in files}
    there = archive.namelist()
    if len({run_id.lower() for run_id in runs}) != len(runs):
        raise UserError(f"{path} holds runs whose ids differ in capitals alone.")
    if len(there) != len(set(there)) or set(there) != wanted:
        odd = next(iter(sorted(set(there) ^ wanted)), there[0])
        raise UserError(f"{path} is refused: {odd[:120]!r} is not what its list of runs names, or stands in it twice.")
    return {str(run_id): {str(k): str(v) for k, v in files.items()} for run_id, files in runs.items()}


def _read(archive: zipfile.ZipFile, name: str, limit: int, path: Path) -> bytes:
    """One file, unpacked as far as a record goes: what its head says of its size is not believed."""
    with archive.open(name) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UserError(f"{path} is refused: {name} unpacks to more than the {limit >> 20} MiB that a record may take.")
    return data


def _sound(folder: Path, path: Path) -> None:
    """Refuse a record that is not whole, or not of one mind."""
    try:
        run = load(folder)
        arrays = bounded_arrays(folder / "arrays.npz")
        if run.id != folder.name:
            raise UserError(f"its record is of {run.id}")
        if run.status not in ("finished", "failed"):
            raise UserError(f"it is {run.status}, and only what is over can be shared")
        wrong = contradictions(run, arrays, finished=run.status == "finished")
    except UserError as fault:
        raise UserError(f"{path} is refused: run {folder.name}: {str(fault).replace(str(folder), folder.name)}") from fault
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as fault:
        raise UserError(f"{path} is refused: run {folder.name} holds what no record holds ({fault}).") from fault
    if wrong:
        raise UserError(f"{path} is refused: run {folder.name} contradicts itself: {wrong[0]}.")


def import_archive(path: Path, runs: Path) -> Imported:
    """Bring the runs of an archive into a folder of records: all of those that are not here yet, or none.

    Raises:
        UserError: as :func:`unpacked`; and where a run of the same id is here with another content.
    """
    made = not runs.exists()
    try:
        runs.mkdir(parents=True, exist_ok=True)
        for stale in runs.glob(".import-*"):  # of an import that was killed
            if time.time() - stale.stat().st_mtime > STALE:
                shutil.rmtree(stale, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=".import-", dir=runs))
    except OSError as fault:
        raise UserError(f"cannot write to {runs} ({fault.strerror}); choose another folder with --runs.") from fault
    done: list[Path] = []
    try:
        archive = unpacked(path, work)
        result = Imported()
        fresh = [run_id for run_id in archive.runs if _fresh(work / run_id, runs / run_id, path, result)]
        _repeats([load(work / run_id) for run_id in fresh], load_all(runs), result)
        for run_id in fresh:
            os.rename(work / run_id, runs / run_id)
            done.append(runs / run_id)
        result.folders = done
        return result
    except BaseException:
        for folder in done:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):
                runs.rmdir()


def _fresh(new: Path, old: Path, path: Path, result: Imported) -> bool:
    """Whether a run is not here yet; what is here under its id must be the same."""
    if not os.path.lexists(old):
        run = load(new)
        if uncounted(run, bounded_arrays(new / "arrays.npz")):
            result.notes.append(f"{new.name} keeps no predictions, so its counts cannot be counted again.")
        return True
    try:
        known, arrays = load(old), load(old).arrays()
        claimed = record_digest(load(new).record, bounded_arrays(new / "arrays.npz"))
        same = record_digest(known.record, arrays) == claimed or record_digest(
            plain(clean(known.record, names_of_this_machine())), arrays) == claimed  # what was exported here
    except UserError as fault:
        raise UserError(f"{path}: run {new.name} is here already and cannot be compared: {fault}") from fault
    if not same:
        raise UserError(f"{path}: {old} is another run, or another version of it, under the same id; import into another "
                        "folder.")
    result.known.append(new.name)
    return False


def _repeats(fresh: Sequence[Run], known: Sequence[Run], result: Imported) -> None:
    """Tell runs that are others under another id: the same protocol, method, seed and answers."""
    def kind(run: Run) -> tuple[Any, ...]:
        return run.fingerprint, run.method, run.source_digest, run.seed, run.order

    asked, seen = set(map(kind, fresh)), dict[tuple[Any, ...], str]()
    for run in [*(r for r in known if kind(r) in asked), *fresh]:
        if run.status == "finished" and (arrays := run.arrays()):
            first = seen.setdefault((*kind(run), answers_digest(arrays)), run.id)
            if first != run.id and any(f is run for f in fresh):
                result.notes.append(f"{run.id} repeats {first}: the same protocol, method, seed and answers.")

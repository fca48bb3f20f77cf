"""One command in a process of its own, hurt on the way, and what it left, to be compared."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["LIMIT", "Child", "difference", "folder_of", "outcome"]

LIMIT = 300.0  # seconds after which a command counts as hanging
_WRITES = ("replace", "fsync", "truncate", "unlink", "mkdir")  # of os: the moments between which a disk is half written


class Child:
    """``cl-bench ARGV``, forked from this process, which has imported everything and has no threads.

    Args:
        place: where its output (``log``) and the digest of its method's state (``state``) go.
        hurt: called in the child before the command, with what counts its writes.
    """

    def __init__(self, argv: list[str], place: Path, hurt: Callable[[Writes], None] | None = None) -> None:
        place.mkdir(parents=True, exist_ok=True)
        self.place, self.began = place, time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            code = 99
            try:
                code = _work(argv, place, hurt)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def ended(self) -> int | None:
        """Exit code, or minus the signal that ended it; None while it lives."""
        if self.pid == 0:
            return self._code
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return None
        self.pid, self._code, self.seconds = 0, os.waitstatus_to_exitcode(status), time.monotonic() - self.began
        return self._code

    def wait(self, until: Callable[[], bool] = lambda: False, limit: float = LIMIT) -> int | None:
        """Its end, or None when ``until`` came first. Raises TimeoutError for one that hangs; it is killed."""
        stop = time.monotonic() + limit
        while (code := self.ended()) is None and not until():
            if time.monotonic() > stop:
                self.signal(signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"no end after {limit:.0f} s; its last words: {self.said()[-500:]}")
            time.sleep(0.002)
        return code

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def said(self) -> str:
        return (self.place / "log").read_text(errors="replace")


class Writes:
    """Counts the calls that change a disk, in the child, and does what it is told before one of them."""

    def __init__(self) -> None:
        self.count, self.at, self.then = 0, -1, lambda: None
        for name in _WRITES:
            setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kw: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                self.then()
            return real(*args, **kw)

        return call


def _work(argv: list[str], place: Path, hurt: Callable[[Writes], None] | None) -> int:
    log = os.open(place / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from cl_bench.cli import main
    from cl_bench.engine import checkpoint, run_state, runner

    run_state.DEAR = 2  # checkpoints far more often than a user pays for, most of them within steps
    methods: list[Any] = []
    built = runner._built

    def keep(*args: Any) -> Any:
        methods.append(built(*args))
        return methods[-1]

    runner._built = keep  # type: ignore[assignment]
    writes = Writes()
    if hurt is not None:
        hurt(writes)
    code = main(argv)
    if code == 0 and methods:
        tree, tensors = checkpoint.snapshot(methods[-1])
        parts = {"tree": json.dumps(tree, sort_keys=True), **{k: _bytes(v.numpy()) for k, v in tensors.items()}}
        (place / "state").write_text(json.dumps(parts))
        (place / "writes").write_text(str(writes.count))
    return code


def _bytes(array: Any) -> str:
    data = np.ascontiguousarray(array)
    return f"{data.dtype} {data.shape} {hashlib.sha256(data.tobytes()).hexdigest()}"


# -- what is left -----------------------------------------------------------------------------------------------------


def folder_of(runs: Path) -> Path | None:
    """The run that can be gone on with: one whose record stands."""
    found = [f.parent for f in sorted(runs.glob("*/run.json"))] if runs.is_dir() else []
    return found[-1] if found else None


@dataclass(frozen=True)
class Left:
    """All of a finished run that a seed determines."""

    parts: Mapping[str, Any]


def outcome(runs: Path, state: Path | None) -> Left:
    """What a finished run left. Raises ValueError where it is not whole: unfinished, locked, or with left-overs."""
    folder = folder_of(runs)
    if folder is None or not (folder / "DONE").exists():
        raise ValueError(f"no finished run in {runs}")
    if more := {p.name for p in folder.iterdir()} - {"run.json", "events.jsonl", "arrays.npz", "DONE", "mlflow.json"}:
        raise ValueError(f"left over: {', '.join(sorted(more))}")
    record = json.loads((folder / "run.json").read_text())
    for key in ("id", "started", "finished", "suite"):
        del record[key]
    del record["cost"]["peak_memory_bytes"]
    record["cost"].pop("memory_bytes", None)  # measured of the process, as the peak is
    record = _timeless(record)
    record["warnings"] = [w for w in record["warnings"] if "started over" not in w]
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    events = [_timeless({k: v for k, v in e.items() if k != "t"}) for e in events
              if e["kind"] != "resume" and "started over" not in str(e.get("message"))]
    with np.load(folder / "arrays.npz") as arrays:
        predictions = {name: _bytes(arrays[name]) for name in arrays.files}
    parts = {"record": record, "events": events, "predictions": predictions}
    if state is not None:
        parts["state"] = json.loads(state.read_text())
    return Left(parts)


def _timeless(value: Any) -> Any:
    """Without what a clock said: no two runs share it."""
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k != "seconds" and not k.endswith("_seconds")}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def difference(a: Any, b: Any, path: str = "") -> str | None:
    """Where two outcomes differ first, and how; None where they are equal."""
    if isinstance(a, Left) and isinstance(b, Left):
        both = a.parts.keys() & b.parts.keys()
        return difference({k: a.parts[k] for k in both}, {k: b.parts[k] for k in both})
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(k for k in b if k not in a)]:
            if key not in a or key not in b:
                return f"{path}.{key} is only in {'the second' if key not in a else 'the first'}"
            if (found := difference(a[key], b[key], f"{path}.{key}")) is not None:
                return found
        return None
    if isinstance(a, list) and isinstance(b, list):
        for k, (x, y) in enumerate(zip(a, b, strict=False)):
            if (found := difference(x, y, f"{path}[{k}]")) is not None:
                return found
        return None if len(a) == len(b) else f"{path} has {len(a)} and {len(b)} entries"
    return None if a == b else f"{path}: {str(a)[:120]} and {str(b)[:120]}"


def fresh(place: Path) -> Path:
    """An empty folder."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(place)
    place.mkdir(parents=True)
    return place

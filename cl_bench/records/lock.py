"""One writer per run folder: a lock that goes away with its process and says who holds it.

``LOCK`` in the folder is held with ``flock``: the system drops it when the process ends, however it ends, so a run that
was killed is never locked. Inside stand the process, its host and when it began, for the sentence alone.

Some file systems (network mounts without a lock service) have no ``flock``. There the file's own words are the rule: a
process of this host that no longer lives has lost the lock; one of another host holds it until the file is removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import weakref
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # no flock on this system: the words decide
    fcntl = None  # type: ignore[assignment]

from ..errors import UserError

__all__ = ["NAME", "RunLock"]

NAME = "LOCK"
_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


class RunLock:
    """Held from construction to :meth:`release`, or to the end of the process.

    Raises:
        UserError: where another writer, in this process or any other, holds the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._file: IO[bytes] | None = None
        while self._file is None:
            self._file = self._try()
        _held.add(self)

    def _try(self) -> IO[bytes] | None:
        """The open, locked file; None where it was taken away in between, which asks for another try."""
        file = _open(self.path, "a+b")
        try:
            if not self._flock(file):
                file.close()
                return self._by_words()
            # The holder before us removes the file while it still holds it: what we locked may have no name any more.
            if not _same(file, self.path):
                file.close()
                return None
            os.truncate(file.fileno(), 0)
            file.write(_words())
            return file
        except BaseException:
            file.close()
            raise

    def _flock(self, file: IO[bytes]) -> bool:
        """True where it is ours now; False where the file system knows no locks."""
        if fcntl is None:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._refused() from None
        except OSError:
            return False
        return True

    def _by_words(self) -> IO[bytes] | None:
        holder = _read(self.path)
        if holder and _lives(holder):
            raise self._refused()
        self.path.unlink(missing_ok=True)
        try:
            file = _open(self.path, "x+b")
        except FileExistsError:
            return None
        file.write(_words())
        return file

    def _refused(self) -> UserError:
        holder = _read(self.path)
        who = f"process {holder['pid']} on {holder['host']} since {holder['began']}" if holder else "another process"
        return UserError(f"{self.path.parent} is being written by {who}: wait until that run ends, or stop it, and try "
                         f"again (if no such process lives, remove {self.path}).")

    def release(self) -> None:
        """Give the folder up; the file goes, unless it is no longer the one that we hold."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            if _same(self._file, self.path):
                self.path.unlink()
        self._file.close()
        self._file = None
        _held.discard(self)

    def _drop(self) -> None:
        """In a forked child: the lock is the parent's, and must not live on in a worker that outlives it."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _open(path: Path, mode: str) -> IO[bytes]:
    """Unbuffered, and never through a link, which could lead to a file that is not ours to empty."""
    return open(path, mode, buffering=0, opener=lambda p, flags: os.open(p, flags | getattr(os, "O_NOFOLLOW", 0), 0o644))


def _same(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _words() -> bytes:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    holder = {"pid": os.getpid(), "host": platform.node(), "began": now, "start": _start(os.getpid())}
    return json.dumps(holder).encode() + b"\n"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        holder = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return holder if isinstance(holder, dict) and {"pid", "host", "began", "start"} <= holder.keys() else None


def _lives(holder: dict[str, Any]) -> bool:
    if holder["host"] != platform.node():
        return True  # nobody can ask another machine
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return holder["start"] is None or _start(int(holder["pid"])) == holder["start"]  # else the number was given again


def _start(pid: int) -> int | None:
    """When a process began, in ticks since the machine did; None where the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _after_fork() -> None:
    for lock in list(_held):
        lock._drop()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

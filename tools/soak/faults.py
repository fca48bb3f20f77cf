"""What happens to runs: each fault takes a cell and a generator, hurts a run of it, goes on, and compares."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import json
import os
import random
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cells import Cell
from .trial import Child, Left, Writes, difference, folder_of, fresh, outcome

__all__ = ["FAULTS", "Broken", "Lane", "Skipped"]


class Broken(Exception):
    """A run that did not end as it must."""


class Skipped(Exception):
    """A fault that this machine cannot have, with the reason."""


@dataclass
class Whole:
    """A cell, uninterrupted: what it left, how long it took, how often it wrote."""

    left: Left
    seconds: float
    writes: int


class Lane:
    """Where trials run, one after another; uninterrupted runs are made once."""

    def __init__(self, place: Path) -> None:
        self.place, self.known = place, dict[str, Whole]()
        self.kills = 0

    def whole(self, cell: Cell) -> Whole:
        key = " ".join(cell.argv)
        if key not in self.known:
            here = fresh(self.place / f"whole-{len(self.known)}")
            child = Child([*cell.argv, "--runs", str(here / "runs"), "--tracking", "none"], here)
            if (code := child.wait()) != 0:
                raise Broken(f"the uninterrupted run ended with {code}: {child.said()[-500:]}")
            self.known[key] = Whole(outcome(here / "runs", here / "state"), child.seconds, int((here / "writes").read_text()))
        return self.known[key]

    def command(self, cell: Cell, runs: Path) -> list[str]:
        """The run, or the way to go on with it, as a user would type it."""
        folder = folder_of(runs)
        return cell.argv if folder is None else ["run", "--resume", str(folder)]

    def start(self, cell: Cell, here: Path, hurt: Callable[[Writes], None] | None = None, tracking: str = "none") -> Child:
        argv = self.command(cell, here / "runs")
        return Child([*argv, "--runs", str(here / "runs"), "--tracking", tracking], here, hurt)

    def finish(self, cell: Cell, here: Path, hurt: Callable[[Writes], None] | None = None, tracking: str = "none") -> None:
        """Go on to the end; it must be the end that the uninterrupted run had."""
        whole = self.whole(cell)
        folder = folder_of(here / "runs")
        if folder is None or not (folder / "DONE").exists():
            child = self.start(cell, here, hurt, tracking)
            if (code := child.wait()) not in (0, 2) or (code == 2 and "has finished" not in child.said()):
                raise Broken(f"going on ended with {code}: {child.said()[-500:]}")
        state = here / "state"
        self.same(whole, here / "runs", state if state.exists() else None)

    def same(self, whole: Whole, runs: Path, state: Path | None) -> None:
        try:
            left = outcome(runs, state)
        except (ValueError, OSError, KeyError) as fault:
            raise Broken(str(fault)) from fault
        if (found := difference(whole.left, left)) is not None:
            raise Broken(f"not the same: {found}")


def _hurt_at(rng: random.Random, whole: Whole, number: int) -> tuple[Callable[[Writes], None] | None, float]:
    """A signal either at one of the writes (in the child itself), or after a time (from here)."""
    if rng.random() < 0.3:
        at = rng.randrange(1, whole.writes + 1)

        def hurt(writes: Writes) -> None:
            writes.at, writes.then = at, lambda: os.kill(os.getpid(), number)

        return hurt, float("inf")
    return None, rng.uniform(0.0, 1.0) * whole.seconds


def _interrupted(lane: Lane, cell: Cell, rng: random.Random, here: Path, number: int, tracking: str = "none",
                 also: Callable[[Writes], None] | None = None) -> Child:
    """A run that ``number`` has hit for certain: one that ends before is begun again, to be hit earlier."""
    whole = lane.whole(cell)
    hurt, after = _hurt_at(rng, whole, number)
    for _ in range(8):
        def both(writes: Writes, hurt: Any = hurt) -> None:
            for one in (hurt, also):
                if one is not None:
                    one(writes)

        child = lane.start(cell, here, both, tracking)
        stop = time.monotonic() + after
        code = child.wait(lambda stop=stop: time.monotonic() >= stop)  # type: ignore[misc]
        if code is None:
            child.signal(number)
            code = child.wait()
        if code != 0:
            return child
        fresh(here)
        hurt, after = None, 0.5 * min(after, whole.seconds)
    raise Broken("it could not be hit before its end")


def sigkill(lane: Lane, cell: Cell, rng: random.Random, here: Path) -> None:
    """Killed once to three times at random moments, in the first run and in those that go on."""
    child = _interrupted(lane, cell, rng, here, signal.SIGKILL)
    _expect(child, -signal.SIGKILL)
    lane.kills += 1
    for _ in range(rng.choice((0, 0, 1, 2))):
        hurt, after = _hurt_at(rng, lane.whole(cell), signal.SIGKILL)
        child = lane.start(cell, here, hurt)
        stop = time.monotonic() + min(after, 60.0)
        if child.wait(lambda stop=stop: time.monotonic() >= stop) is None:  # type: ignore[misc]
            child.signal(signal.SIGKILL)
            child.wait()
    lane.finish(cell, here)


def sigterm(lane: Lane, cell: Cell, rng: random.Random, here: Path) -> None:
    """Stopped as a scheduler does: the record says so."""
    child = _interrupted(lane, cell, rng, here, signal.SIGTERM)
    _expect(child, 143, -signal.SIGTERM)
    folder = folder_of(here / "runs")
    if folder is not None and child.ended() == 143 and not (folder / "DONE").exists():
        record = json.loads((folder / "run.json").read_text())
        if record["status"] != "finished" and (record["status"], record["error"]) != ("stopped", "stopped by SIGTERM"):
            raise Broken(f"stopped, and its record says {record['status']}: {record['error']}")
    lane.finish(cell, here)


def _expect(child: Child, *codes: int) -> None:
    if child.ended() not in codes:
        raise Broken(f"ended with {child.ended()}, not {codes}: {child.said()[-800:]}")
    if "Traceback" in child.said():
        raise Broken(f"a traceback: {child.said()[-800:]}")


def second_resume(lane: Lane, cell: Cell, rng: random.Random, here: Path) -> None:
    """While a run lives, another process that takes it up is refused, and nothing changes."""
    whole = lane.whole(cell)
    first = lane.start(cell, here)
    runs = here / "runs"
    first.wait(lambda: folder_of(runs) is not None)
    stop = time.monotonic() + rng.uniform(0.0, 0.5) * whole.seconds
    if first.wait(lambda: time.monotonic() >= stop) is None:
        first.signal(signal.SIGSTOP)
        try:
            folder = folder_of(runs)
            assert folder is not None
            if (folder / "LOCK").exists() and not (folder / "DONE").exists():
                before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
                second = Child(["run", "--resume", str(folder), "--tracking", "none"], here / "second")
                if second.wait() != 2 or f"being written by process {first.pid} " not in second.said():
                    raise Broken(f"the second ended with {second.ended()}: {second.said()[-500:]}")
                if {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} != before:
                    raise Broken("the refused one changed the folder")
        finally:
            first.signal(signal.SIGCONT)
        first.wait()
    if first.ended() != 0:
        raise Broken(f"the first ended with {first.ended()}: {first.said()[-500:]}")
    lane.same(whole, runs, here / "state")


def clock_back(lane: Lane, cell: Cell, rng: random.Random, here: Path) -> None:
    """Every clock that can be set goes back a day, between and within a run that is killed and goes on."""
    at = rng.randrange(1, lane.whole(cell).writes + 1)

    def hurt(writes: Writes) -> None:
        from cl_bench.records import writer

        real, back = time.time, 86400.0 * rng.uniform(0.5, 30)

        class Set(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime.datetime.fromtimestamp(time.time(), tz)

        def set_now() -> None:
            time.time = lambda: real() - back  # type: ignore[assignment]
            writer.datetime = Set  # type: ignore[misc]

        inner, then = writes.at, writes.then
        if inner < 0:
            writes.at, writes.then = at, set_now
        else:  # the kill has its write already: set it from the start
            set_now()
            writes.at, writes.then = inner, then

    _expect(_interrupted(lane, cell, rng, here, signal.SIGKILL, also=hurt), -signal.SIGKILL)
    lane.finish(cell, here, hurt)


@contextlib.contextmanager
def _locked(runs: Path) -> Iterator[str]:
    runs.mkdir(parents=True, exist_ok=True)
    holder = sqlite3.connect(runs / "mlflow.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        yield f"sqlite:///{runs / 'mlflow.db'}"
    finally:
        holder.close()


@contextlib.contextmanager
def _down(runs: Path) -> Iterator[str]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


def tracking(lane: Lane, cell: Cell, rng: random.Random, here: Path) -> None:
    """The tracking server is down, or its database locked, while a run is killed and goes on."""
    def impatient(writes: Writes) -> None:
        from cl_bench.records import tracking

        tracking.PATIENCE = 2.0  # what the end of a command waits for the store

    with rng.choice((_locked, _down))(here.with_name(f"{here.name}-store")) as uri:
        _expect(_interrupted(lane, cell, rng, here, signal.SIGKILL, uri, also=impatient), -signal.SIGKILL)
        lane.finish(cell, here, impatient, uri)


# -- a disk that is full ----------------------------------------------------------------------------------------------


def full_disk(lane: Lane, cell: Cell, rng: random.Random, here: Path) -> None:
    """A small file system of its own, in a mount that only the trial sees, fills up; later there is room again."""
    lane.whole(cell)
    size, share = 96 * 2**20, rng.uniform(0.0, 1.0)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _mounted(here, size)
            code = _in_full_room(lane, cell, here, share)
        except Skipped as why:
            (here.parent / "why").write_text(str(why))
            code = 77
        except BaseException as fault:
            (here.parent / "why").write_text(f"{type(fault).__name__}: {fault}")
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    why = (here.parent / "why").read_text() if code else ""
    if code == 77:
        raise Skipped(why)
    if code:
        raise Broken(why)


def _mounted(here: Path, size: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, new_user, private = 0x00020000, 0x10000000, 0x44000  # CLONE_NEWNS, CLONE_NEWUSER, MS_REC | MS_PRIVATE
    user, group = os.getuid(), os.getgid()
    if libc.unshare(new_mounts) != 0:
        if libc.unshare(new_mounts | new_user) != 0:
            raise Skipped(f"this system gives no mount of one's own ({os.strerror(ctypes.get_errno())})")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    libc.mount(None, b"/", None, private, None)
    if libc.mount(b"tmpfs", str(here).encode(), b"tmpfs", 0, f"size={size}".encode()) != 0:
        raise Skipped(f"a small file system cannot be mounted ({os.strerror(ctypes.get_errno())})")


def _in_full_room(lane: Lane, cell: Cell, here: Path, share: float) -> int:
    """Between nothing and all that the run wants is left on the disk, then everything."""
    first = lane.start(cell, here)  # how much it wants, with its checkpoints
    most, runs = 0, here / "runs"

    def measured() -> bool:
        nonlocal most
        disk = os.statvfs(here)
        most = max(most, (disk.f_blocks - disk.f_bfree) * disk.f_frsize)
        return False

    if first.wait(measured) != 0:
        raise Broken(f"ended with {first.ended()} before the disk was full: {first.said()[-500:]}")
    fresh(runs)
    disk = os.statvfs(here)
    with open(here / "filler", "wb") as filler:
        filler.write(bytes(max(0, disk.f_bavail * disk.f_frsize - int(share * most))))
    outside = here.parent / f"{here.name}-said"
    argv = [*lane.command(cell, runs), "--runs", str(runs), "--tracking", "none"]
    child = Child(argv, outside)
    code = child.wait()
    if code not in (0, 1, 2) or "Traceback" in child.said():
        raise Broken(f"a full disk ended it with {code}: {child.said()[-800:]}")
    (here / "filler").unlink()
    lane.finish(cell, here)
    return 0


# -- a worker of a suite ----------------------------------------------------------------------------------------------

SUITE = """
name: soak
seeds: [1]
compute: {device: cpu}
runs:
  - scenario: {class_path: split_digits, init_args: {per_class: 24}}
    methods: [{class_path: er, init_args: {epochs: 2}}, {class_path: lora, init_args: {epochs: 2}}, ncm]
"""


def worker(lane: Lane, cell: Cell, rng: random.Random, here: Path) -> None:
    """One worker of a suite is killed: its own run is named, the others finish; called again, all do."""
    (here / "suite.yaml").write_text(SUITE)
    runs = here / "runs"
    argv = ["suite", str(here / "suite.yaml"), "--runs", str(runs), "--tracking", "none"]
    if "suite" not in lane.known:
        calm = Child([*argv[:2], "--runs", str(here / "calm"), "--tracking", "none", "--jobs", "1"], here)
        if calm.wait() != 0:
            raise Broken(f"the suite ended with {calm.ended()}: {calm.said()[-500:]}")
        lane.known["suite"] = Whole(Left(_by_method(here / "calm")), calm.seconds, 0)
    child = Child([*argv, "--jobs", "2"], here)
    holder: list[int] = []

    def one_writes() -> bool:
        for lock in runs.glob("*/LOCK"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                holder[:] = [int(json.loads(lock.read_bytes())["pid"])]
        return bool(holder)

    if child.wait(one_writes) is None:
        time.sleep(rng.uniform(0.0, 0.4))
        with contextlib.suppress(ProcessLookupError):
            os.kill(holder[0], signal.SIGKILL)
        code = child.wait()
        if code not in (0, 1) or (code == 1 and "was ended by SIGKILL" not in child.said()):
            raise Broken(f"the suite ended with {code}: {child.said()[-800:]}")
    again = Child([*argv, "--jobs", "1"], here)
    if again.wait() != 0:
        raise Broken(f"called again, the suite ended with {again.ended()}: {again.said()[-800:]}")
    if (found := difference(lane.known["suite"].left, Left(_by_method(runs)))) is not None:
        raise Broken(f"not the same: {found}")


def _by_method(runs: Path) -> dict[str, Any]:
    """Outcomes of the finished runs of a suite; a killed worker's first record may stand beside its second."""
    parts = {}
    for folder in sorted(f.parent for f in runs.glob("*/DONE")):
        alone = fresh(runs.parent / "alone")
        (alone / "run").symlink_to(folder.resolve())
        left = outcome(alone, None).parts
        parts[left["record"]["method"]["name"]] = dict(left)
    return parts


FAULTS: dict[str, Callable[[Lane, Cell, random.Random, Path], None]] = {
    "SIGKILL": sigkill, "SIGTERM": sigterm, "full disk": full_disk, "worker killed": worker,
    "second resume": second_resume, "clock set back": clock_back, "tracking store": tracking,
}

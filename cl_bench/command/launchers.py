"""Where the runs of a suite are executed: on this machine here; elsewhere by an entry point ``cl_bench.launchers``.

A launcher takes configs one by one when it can start them, and says what became of each:
``Iterable[config] -> Iterator[(index, folder, error)]``. ``run`` executes one config wherever it is called, raises nothing
but the user's interrupt and can be pickled.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from ..ranges import Whole

__all__ = ["Launcher", "Result", "local"]

Config = Mapping[str, Any]
Result = tuple[str, str | None]  # (folder, None), or ("", one sentence)
GRACE = 30.0  # seconds that a stopped worker has for its last record


class Launcher(Protocol):
    """What an entry point of ``cl_bench.launchers`` names."""

    def __call__(self, configs: Iterable[Config], run: Callable[[Config], Result], *,
                 workers: Whole = 0) -> Iterator[tuple[int, str, str | None]]:
        """Execute ``run(config)`` for each of ``configs``, each once, and yield (its index, folder, error).

        Args:
            configs: to be taken one at a time, when the next can start.
            run: config -> (folder, None), or ("", sentence).
            workers: how many at once; 0 = as many as fit.
        """
        ...


def local(configs: Iterable[Config], run: Callable[[Config], Result], *,
          workers: Whole = 0) -> Iterator[tuple[int, str, str | None]]:
    """Processes of this machine, one per core unless told otherwise; one worker means this process itself.

    A worker serves one run after another. One that dies (killed, out of memory, a crash of native code) costs the run it
    had, and a fresh one takes its place. Workers end with this process, however it ends.
    """
    if workers == 1:
        for k, config in enumerate(configs):
            yield k, *run(config)
        return
    count = workers or os.cpu_count() or 1
    source = enumerate(configs)
    busy: dict[int, _Worker] = {}
    idle: list[_Worker] = []
    orderly = False
    try:
        while True:
            while len(busy) < count and (item := next(source, None)) is not None:
                busy[item[0]] = _started(item[1], idle, run)
            if not busy:
                break
            wait([handle for worker in busy.values() for handle in worker.handles()])
            for k, worker in list(busy.items()):
                result = worker.result()
                if result is not None:
                    del busy[k]
                    if worker.alive():
                        idle.append(worker)
                    yield k, *result
        orderly = True
    finally:
        _end([*busy.values(), *idle], orderly)


def _started(config: Config, idle: list[_Worker], run: Callable[[Config], Result]) -> _Worker:
    while idle:
        with contextlib.suppress(OSError):  # it died while it waited
            worker = idle.pop()
            worker.pipe.send(config)
            return worker
    worker = _Worker(run)
    with contextlib.suppress(OSError):  # it died at once, and is found dead in the next round
        worker.pipe.send(config)
    return worker


class _Worker:
    """One process that runs what is sent to it. "spawn": a forked torch keeps locks of threads that are not there."""

    def __init__(self, run: Callable[[Config], Result]) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, run), daemon=False)
        self.process.start()
        theirs.close()  # else the end of the process would not show here

    def handles(self) -> list[Any]:
        return [self.pipe, self.process.sentinel]

    def alive(self) -> bool:
        return self.process.exitcode is None

    def result(self) -> Result | None:
        """What it answered; a sentence if it died without; None while it works."""
        try:
            if self.pipe.poll():
                folder, error = self.pipe.recv()
                return folder, error
        except (EOFError, OSError):
            self.process.join()
        return None if self.alive() else ("", _how(self.process.exitcode))


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else str(-code)
        why = ": out of memory, or killed from outside" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{why}; the other runs went on. Call the suite again to go on with it."
    return f"its process left with code {code} in the midst of the run; the other runs went on."


def _end(workers: list[_Worker], orderly: bool) -> None:
    """Let idle workers go; stop those that still work, whose runs end as ``stopped``."""
    for worker in workers:
        worker.pipe.close()
        if not orderly:
            worker.process.terminate()
    until = time.monotonic() + GRACE
    for worker in workers:
        worker.process.join(max(0.0, until - time.monotonic()))
        if worker.alive():
            worker.process.kill()
            worker.process.join()


# -- inside a worker --------------------------------------------------------------------------------------------------


def _serve(pipe: Connection, run: Callable[[Config], Result]) -> None:
    """Run what comes until nothing comes any more. An interrupt is the parent's to handle: it terminates its workers."""
    state = {"busy": False, "stopped": False}

    def stop(*_: object) -> None:
        state["stopped"] = True
        if state["busy"]:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    while not state["stopped"]:
        try:
            config = pipe.recv()
        except (EOFError, OSError):
            return
        result: Result = ("", "stopped by the user")
        try:
            state["busy"] = True
            if not state["stopped"]:
                result = run(config)
        except KeyboardInterrupt:
            pass
        finally:
            state["busy"] = False
        with contextlib.suppress(OSError):  # nobody waits for it any more
            pipe.send(result)


def _leave_with_parent() -> None:
    """When the parent is gone, stop the run at hand as the user's interrupt would; leave all the same if that is late."""
    parent = parent_process()
    if parent is None:
        return
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)

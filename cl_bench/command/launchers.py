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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing import get_all_start_methods, get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from ..errors import UserError
from ..ranges import Amount, Whole

__all__ = ["Launcher", "Result", "cores", "local"]

Config = Mapping[str, Any]
Result = tuple[str, str | None]  # (folder, None), or ("", one sentence)
_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_STARTS = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
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


def local(configs: Iterable[Config], run: Callable[[Config], Result], *, workers: Whole = 0,
          gpus_per_run: Amount = 0.0) -> Iterator[tuple[int, str, str | None]]:
    """Processes of this machine, one per core unless told otherwise; one worker means this process itself.

    A worker serves one run after another. One that dies (killed, out of memory, a crash of native code) costs the run it
    had, and a fresh one takes its place. Workers end with this process, however it ends.

    Args:
        workers: runs at once; 0: as many as there are cores for their threads, and GPUs for their shares.
        gpus_per_run: what a run takes of a GPU: 0.5 puts two runs on each, 2 gives each run two. 0: GPUs are shared evenly
            among the workers. A worker sees its own alone (``CUDA_VISIBLE_DEVICES``).

    Raises:
        UserError: for a share of GPUs where there are too few.
    """
    gpus = _gpus()
    places = _places(gpus, gpus_per_run)
    if workers == 1 and (not places or len(gpus) == 1):
        for k, config in enumerate(configs):
            yield k, *run(config)
        return
    room = cores()
    free = places[:workers or None] if gpus_per_run else [places[k % len(places)] for k in range(workers or room)] if places \
        else [""] * (workers or room)
    share = max(1, room // len(free))
    source = enumerate(configs)
    busy: dict[int, _Worker] = {}
    idle: list[_Worker] = []
    waiting: tuple[int, Config] | None = None
    orderly = False
    try:
        while True:
            while free:
                if (waiting := waiting or next(source, None)) is None:
                    break
                needs = _threads(waiting[1], room)
                if busy and not workers and sum(w.cores for w in busy.values()) + needs > room:
                    break
                busy[waiting[0]] = _started(waiting[1], idle, run, free, share)
                busy[waiting[0]].cores = needs
                waiting = None
            if not busy:
                break
            wait([handle for worker in busy.values() for handle in worker.handles()])
            for k, worker in list(busy.items()):
                result = worker.result()
                if result is not None:
                    del busy[k]
                    free.append(worker.place)
                    if worker.alive():
                        idle.append(worker)
                    yield k, *result
        orderly = True
    finally:
        _end([*busy.values(), *idle], orderly)


def cores() -> int:
    """The cores that this process may use: a scheduler or container may give it fewer than the machine has."""
    asked = getattr(os, "sched_getaffinity", None)
    return len(asked(0)) if asked is not None else os.cpu_count() or 1


def _threads(config: Config, room: int) -> int:
    """The cores that a run keeps busy by itself."""
    threads = (config.get("compute") or {}).get("threads", 1)
    return min(room, threads) if isinstance(threads, int) and threads > 0 else room


def _gpus() -> list[str]:
    """What this process may see of the machine's GPUs, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [word.strip() for word in given.split(",") if word.strip() and word.strip() != "-1"]
    import torch

    return [str(k) for k in range(torch.cuda.device_count())]


def _places(gpus: Sequence[str], per_run: float) -> list[str]:
    """Who sees which GPUs, one entry for every run that fits at once; GPU by GPU, so that few runs spread over all."""
    if not per_run:
        return list(gpus)
    if per_run >= 1:
        whole = int(per_run)
        if whole != per_run:
            raise UserError(f"--gpus-per-run {per_run:g} must be a share of one GPU, such as 0.5, or a whole number of them.")
        found = [",".join(gpus[k:k + whole]) for k in range(0, len(gpus) - whole + 1, whole)]
    else:
        found = list(gpus) * int(1 / per_run + 1e-9)
    if not found:
        raise UserError(f"--gpus-per-run {per_run:g} does not fit: this machine has {len(gpus)} GPUs that may be used.")
    return found


def _started(config: Config, idle: list[_Worker], run: Callable[[Config], Result], free: list[str], share: int) -> _Worker:
    """A worker at a free place, one that idles where there is one."""
    while idle:
        with contextlib.suppress(OSError):  # it died while it waited
            worker = idle.pop()
            worker.pipe.send(config)
            free.remove(worker.place)
            return worker
    worker = _Worker(run, free.pop(0), share)
    with contextlib.suppress(OSError):  # it died at once, and is found dead in the next round
        worker.pipe.send(config)
    return worker


def prepare(workers: int) -> None:
    """Begin to import, in a process of its own, what every worker needs: they are forked from there, each import done once.

    That process runs nothing and has no threads; a fork of this one would keep locks of threads that are not there.
    """
    if workers != 1 and _STARTS == "forkserver":
        from multiprocessing import forkserver, resource_tracker

        get_context(_STARTS).set_forkserver_preload(["cl_bench.command.preload"])
        with _surroundings({name: str(max(1, cores() // (workers or cores()))) for name in _POOLS if name not in os.environ}):
            resource_tracker.ensure_running()  # it would let signals through as it starts
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is this process's to handle
            try:
                forkserver.ensure_running()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)


local.prepare = prepare  # type: ignore[attr-defined]


class _Worker:
    """One process that runs what is sent to it."""

    def __init__(self, run: Callable[[Config], Result], place: str, share: int) -> None:
        prepare(0)
        context: Any = get_context(_STARTS)
        self.place, self.cores = place, 1
        self.pipe, theirs = context.Pipe()
        own = dict.fromkeys((name for name in _POOLS if name not in os.environ), str(share))
        if place:
            own["CUDA_VISIBLE_DEVICES"] = place
        self.process = context.Process(target=_serve, args=(theirs, run, {**os.environ, **own}), daemon=False)
        with _surroundings(own):
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


@contextlib.contextmanager
def _surroundings(wanted: Mapping[str, str]) -> Iterator[None]:
    """What a process that starts now finds: its GPUs, and no more threads in libraries than its share of the cores."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


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


def _serve(pipe: Connection, run: Callable[[Config], Result], given: Mapping[str, str]) -> None:
    """Run what comes until nothing comes any more, in the environment that is given.

    An interrupt is the parent's to handle: it terminates its workers.
    """
    from ..engine.allocator import as_asked

    os.environ.clear()  # a forked process has what held when the one it was forked from began; no GPU was looked for yet
    os.environ.update(given)
    as_asked()
    state = {"busy": False, "stopped": False}

    def stop(*_: object) -> None:
        state["stopped"] = True
        if state["busy"]:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):  # the server that it was forked from blocks it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, stop)
    with contextlib.suppress(OSError):  # where memory ends, a run goes before the process that looks after all of them
        Path("/proc/self/oom_score_adj").write_text("500")
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

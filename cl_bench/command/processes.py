"""Starts a run: in this process, or in as many as it has devices, of which this one is the first and writes."""

from __future__ import annotations

import contextlib
import re
import signal
import tempfile
from collections.abc import Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ..errors import UserError, told

__all__ = ["execute"]

_HUNG_UP = re.compile(r"gloo|NCCL|[Cc]onnection (?:closed|reset|refused)|store")
GRACE = 30.0  # seconds that the other processes have to end after the first


def execute(plan: Any, runs: Path, *, listen: Any = None, resume: Path | None = None) -> Path:
    """:func:`cl_bench.engine.runner.run` on as many devices as the plan asks for."""
    from ..engine.runner import run

    if plan.compute.devices == 1:
        return run(plan, runs, listen=listen, resume=resume)
    from dataclasses import replace

    from ..engine.compute import resolve_device
    from ..engine.processes import check_processes, joined

    cuda = resolve_device(plan.compute.device).type == "cuda"
    count, context = plan.compute.devices, get_context("spawn")
    check_processes(plan.compute, plan.method, plan.scenario, plan.names["method"]["label"])
    with tempfile.TemporaryDirectory(prefix="cl-bench-") as meeting:
        store = str(Path(meeting) / "store")
        others, pipes = [], []
        for number in range(1, count):
            mine, theirs = context.Pipe(duplex=False)
            facts = (dict(plan.config), plan.suite, dict(plan.tuning), str(runs), None if resume is None else str(resume))
            process = context.Process(target=_other, args=(theirs, facts, number, count, store, cuda), daemon=True)
            process.start()
            theirs.close()
            others.append(process)
            pipes.append(mine)
        plan = replace(plan, compute=replace(plan.compute, device="cuda:0" if cuda else "cpu"))
        try:
            for process, pipe in zip(others, pipes, strict=True):
                _met(process, pipe)
            try:
                with joined(0, count, store, cuda):
                    return run(plan, runs, listen=listen, resume=resume)
            except RuntimeError as fault:  # of a process that went, the others see that it hung up
                if not _HUNG_UP.search(str(fault)):
                    raise
                said = [text for pipe in pipes if (text := _said(pipe)) and not _HUNG_UP.search(text)]
                raise RuntimeError(f"another process of the run failed: {said[0] if said else 'it was killed'}") from fault
        finally:
            for process in others:
                process.join(GRACE)
                if process.is_alive():
                    process.kill()
                    process.join()


def _met(process: BaseProcess, pipe: Connection) -> None:
    """Return when the process is about to join; whoever joined without one that had gone would wait for it in vain.

    Raises:
        RuntimeError: with what the process said, where it ended before.
    """
    wait([pipe, process.sentinel])
    said = "it was killed"
    with contextlib.suppress(EOFError, OSError):
        if pipe.poll() and not (said := str(pipe.recv())):
            return
    raise RuntimeError(f"another process of the run failed: {said}")


def _said(pipe: Connection) -> str:
    with contextlib.suppress(EOFError, OSError):
        if pipe.poll(GRACE):
            return str(pipe.recv())
    return ""


def _other(pipe: Connection, facts: tuple[Mapping[str, Any], Any, Any, str, str | None], number: int, count: int, store: str,
           cuda: bool) -> None:
    """One of the other processes: it builds the run from its config, walks it, and writes nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends it
    config, suite, tuning, runs, resume = facts
    try:
        from dataclasses import replace

        from ..engine.processes import joined
        from ..engine.runner import run
        from .config import plan_from

        plan = plan_from(config, suite)
        plan.tuning = dict(tuning)
        plan.compute = replace(plan.compute, device=f"cuda:{number}" if cuda else "cpu")
        pipe.send("")  # here it is
        with joined(number, count, store, cuda):
            run(plan, Path(runs), resume=None if resume is None else Path(resume))
    except BaseException as fault:
        with contextlib.suppress(OSError):
            pipe.send(str(fault) if isinstance(fault, UserError) else told(fault))
        raise SystemExit(1) from fault

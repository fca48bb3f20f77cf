"""One run of a suite as a launcher is handed it: executed wherever it is called."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import UserError, told
from .launchers import Result
from .streams import said

__all__ = ["Task", "key_of", "recorded"]


_SINCE = {"layout": "contiguous", "compile": False}  # what was done before there were these options, which older records lack


def recorded(config: Any) -> Any:
    """A record's config (or what stands there), with the options that its cl-bench did not have at what it did."""
    compute = config.get("compute") if isinstance(config, Mapping) else None
    return {**config, "compute": {**_SINCE, **compute}} if isinstance(compute, Mapping) else config


def key_of(config: Mapping[str, Any]) -> str:
    """Hash of a config as a record holds it, by which its run is recognised."""
    from ..records.results import plain

    told = plain(recorded(config))
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Task:
    """Runs a config, anew or on from where it was; one bad run costs one row. Only an interrupt passes.

    Attributes:
        runs: the folder of records; on other machines it must be the same folder, or :meth:`at` gives another.
        resume: folders of runs that were begun, by the key of their config.
    """

    runs: str
    suite: str
    resume: Mapping[str, str]

    def at(self, runs: Path, begun: Path | None = None, config: Mapping[str, Any] | None = None) -> Task:
        """The same task in another folder of records, where ``begun`` is the run of ``config`` to go on with."""
        return replace(self, runs=str(runs), resume={} if begun is None or config is None else {key_of(config): str(begun)})

    def begun(self, config: Mapping[str, Any]) -> Path | None:
        """The folder of the run that ``config`` goes on with."""
        folder = self.resume.get(key_of(config))
        return Path(folder) if folder else None

    def __call__(self, config: Mapping[str, Any], started: Callable[[Path], None] | None = None) -> Result:
        """(folder, None), or ("", one sentence); ``started`` is told the folder as soon as it holds a record."""
        from .config import plan_from
        from .processes import execute

        def listen(kind: str, facts: Any) -> None:
            if kind == "start" and started is not None:
                started(Path(self.runs) / str(facts["id"]))

        try:
            with said():
                plan = plan_from(config, self.suite or None)
                return str(execute(plan, Path(self.runs), listen=listen, resume=self.begun(config))), None
        except UserError as fault:
            return "", str(fault)
        except (Exception, SystemExit) as fault:
            if os.environ.get("CL_BENCH_DEBUG"):
                traceback.print_exc()
            return "", told(fault)
        finally:
            _free()


def _free() -> None:
    """What a run held is given back: the method that the engine's Trainer for measuring still has, of a GPU what other
    processes may share, and of the host what Python and its C library keep of freed memory, by which a process grew by a
    network with every run."""
    global _held
    if (trainers := sys.modules.get("cl_bench.engine.trainer")) is not None:
        trainers.tester.cache_clear()
    torch = sys.modules.get("torch")
    card = torch is not None and torch.cuda.is_initialized()
    grown = _resident() > _held + GROWTH  # not after a small run, which leaves little: all objects are walked through
    if card or grown:
        gc.collect()
    if torch is not None and card:
        torch.cuda.empty_cache()
    if grown:
        if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # glibc alone
            trim(0)
        _held = _resident()


GROWTH = 64 * 2**20  # bytes
_held = 0


def _resident() -> int:
    """Bytes of memory that this process has; 0 where its platform does not say."""
    meter = sys.modules.get("cl_bench.engine.meter")  # there once anything has run
    return (meter.resident() or 0) if meter is not None else 0

"""A suite: many runs from one file, in parallel processes, each as if it ran alone."""

from __future__ import annotations

import hashlib
import json
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ..errors import UserError, told

__all__ = ["Job", "Outcome", "Suite", "read_suite", "run_suite"]

_KEYS = {"name", "about", "seeds", "runs", "compute", "source"}
_ROW_KEYS = {"scenario", "backbone", "methods", "seeds", "source", "compute"}


@dataclass(frozen=True)
class Job:
    """One run of a suite: what :func:`cl_bench.command.config.parse` takes."""

    label: str
    config: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Hash of the config, by which a finished run is recognised."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Suite:
    """A named list of jobs; ``about`` says what it should reach and in what time."""

    name: str
    about: str
    jobs: tuple[Job, ...]


@dataclass
class Outcome:
    """How a suite ended: folders of finished runs in the file's order, and one sentence per failure."""

    folders: list[Path] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def read_suite(path: Path) -> Suite:
    """A suite file: ``name``, ``seeds`` and ``runs``, each a scenario, a backbone and a list of methods.

    Raises:
        UserError: for a missing or unknown key.
    """
    import difflib

    from .config import read_yaml

    data = read_yaml(path)
    rows = data.get("runs") if isinstance(data, Mapping) else None
    if not isinstance(rows, list):
        raise UserError(f"{path} is no suite: it needs a list `runs` of scenario, backbone and methods.")
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        raise UserError(f"runs in {path} must list mappings, each with a scenario and methods.")
    for where, keys in ((data, _KEYS), *((row, _ROW_KEYS) for row in rows)):
        for key in where:
            if key not in keys:
                near = difflib.get_close_matches(str(key), keys, n=1)
                raise UserError(f"{path} has an unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else
                                f"; known are {', '.join(sorted(keys))}."))
    jobs: list[Job] = []
    for row in rows:
        if "scenario" not in row or not isinstance(row.get("methods"), list) or not row["methods"]:
            raise UserError(f"every entry of runs in {path} needs a scenario and a list of methods.")
        seeds = row.get("seeds", data.get("seeds", [0]))
        if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
            raise UserError(f"seeds in {path} must be a list of whole numbers, not {seeds!r}.")
        for method in row["methods"]:
            for seed in seeds:
                config: dict[str, Any] = {"scenario": row["scenario"], "method": method, "seed": seed}
                for key in ("backbone", "source", "compute"):
                    value = row.get(key, data.get(key))
                    if value is not None:
                        config[key] = value
                jobs.append(Job(f"{_short(row['scenario'])} {_short(method)} seed {seed}", config))
    return Suite(str(data.get("name", path.stem)), str(data.get("about", "")), tuple(jobs))


def _short(part: Any) -> str:
    """What a line of progress calls a scenario or method: its name and, where the suite gives any, its settings."""
    if not isinstance(part, Mapping):
        return str(part).rpartition(":")[2].rpartition(".")[2]
    given = part.get("init_args")
    settings = ", ".join(f"{k}={_short(v)}" if isinstance(v, Mapping) else f"{k}={v}" for k, v in (
        given.items() if isinstance(given, Mapping) else ()))
    return _short(part.get("class_path", "?")) + (f"({settings})" if settings else "")


def run_suite(suite: Suite, runs: Path, *, jobs: int = 0, again: bool = False, overrides: Sequence[str] = (),
              progress: Callable[[str, Mapping[str, Any]], None] | None = None) -> Outcome:
    """Run every job and return what came of it. A failing run is recorded and named; the others go on.

    Args:
        jobs: processes; 0 = one per core. The number changes no result.
        again: run also what already finished in ``runs`` with the same config.
        overrides: options appended to every run, ``["--compute.device", "cpu"]``.
        progress: called in this process with ("start" | "step" | "finish" | "error" | "skip", facts).
    """
    say = progress or (lambda kind, facts: None)
    configs = [_resolved(job, overrides) for job in suite.jobs]  # a mistake in any run is told before the first starts
    known = {} if again else _finished(runs)
    outcome, folders = Outcome(), dict.fromkeys(range(len(configs)), Path())
    todo = []
    for k, config in enumerate(configs):
        if _key(config) in known:
            folders[k] = known[_key(config)]
            say("skip", {"label": suite.jobs[k].label})
        else:
            todo.append(k)
    workers = min(jobs or os.cpu_count() or 1, max(1, len(todo)))
    for k, folder, error in _execute(suite, configs, todo, runs, workers, say):
        if error is None:
            folders[k] = folder
        else:
            outcome.failures.append(f"{suite.jobs[k].label}: {error}")
    outcome.folders = [f for f in folders.values() if f != Path()]
    return outcome


def _resolved(job: Job, overrides: Sequence[str]) -> dict[str, Any]:
    from .config import parse, preflight

    try:
        config = parse(list(overrides), job.config)
        preflight(config)
        return config
    except UserError as fault:
        raise UserError(f"{job.label}: {fault}") from fault


def _key(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def _finished(runs: Path) -> dict[str, Path]:
    from ..records.results import load_all

    if not runs.is_dir():
        return {}
    return {_key(r.record["config"]): r.folder for r in load_all(runs) if r.status == "finished"}


def _execute(suite: Suite, configs: Sequence[Mapping[str, Any]], todo: Sequence[int], runs: Path, workers: int,
             say: Callable[[str, Mapping[str, Any]], None]) -> Iterator[tuple[int, Path, str | None]]:
    if workers == 1:
        for k in todo:
            say("start", {"label": suite.jobs[k].label})
            result = _one(configs[k], str(runs), suite.name)
            say("finish" if result[1] is None else "error", {"label": suite.jobs[k].label, "message": result[1]})
            yield k, Path(result[0]), result[1]
        return
    # "spawn": a forked torch keeps locks of threads that are not there
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_warm) as pool:
        waiting = {pool.submit(_one, configs[k], str(runs), suite.name): k for k in todo}
        try:
            for done in as_completed(waiting):
                k = waiting[done]
                try:
                    folder, error = done.result()
                except Exception as fault:  # the process died: say which run and go on
                    folder, error = "", f"{type(fault).__name__}: {fault}"
                say("finish" if error is None else "error", {"label": suite.jobs[k].label, "message": error})
                yield k, Path(folder), error
        except BaseException:
            workers_now = list(pool._processes.values())  # the public way, terminate_workers, came with Python 3.14
            pool.shutdown(wait=False, cancel_futures=True)
            for process in workers_now:
                process.terminate()
            raise


_state = {"busy": False, "stopped": False}  # of this worker process


def _warm() -> None:
    """Import what every run needs once per process. An interrupt is the parent's to handle: it terminates the workers,
    whose runs then end as ``stopped``."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)


def _stop(*_: object) -> None:
    """End the run at hand and take no other; a worker that waits goes away with its parent."""
    _state["stopped"] = True
    if _state["busy"]:
        raise KeyboardInterrupt


def _one(config: Mapping[str, Any], runs: str, suite: str) -> tuple[str, str | None]:
    """(folder, None) or ("", sentence): one bad run costs one row. Only the user's interrupt passes."""
    from ..engine.runner import run
    from .config import plan_from

    if _state["stopped"]:
        return "", "stopped by the user"
    _state["busy"] = True
    try:
        return str(run(plan_from(config, suite), Path(runs))), None
    except UserError as fault:
        return "", str(fault)
    except Exception as fault:
        if os.environ.get("CL_BENCH_DEBUG"):
            traceback.print_exc()
        return "", told(fault)
    finally:
        _state["busy"] = False

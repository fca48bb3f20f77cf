"""A suite: many runs from one file, in parallel processes, each as if it ran alone."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError, told
from .files import brief
from .launchers import Launcher, Result, local

__all__ = ["Job", "Outcome", "Suite", "read_suite", "run_suite"]

_KEYS = {"name", "about", "seeds", "orders", "runs", "compute", "source"}
_ROW_KEYS = {"scenario", "backbone", "methods", "seeds", "orders", "source", "compute"}


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
    """How a suite ended: folders of finished runs in the file's order, one sentence per failure, and the labels of those
    that had finished earlier."""

    folders: list[Path] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def read_suite(path: Path) -> Suite:
    """A suite file: ``name``, ``seeds`` and ``runs``, each a scenario, a backbone and a list of methods.

    ``orders`` gives the scenario its class order: a list (each with every seed), or ``seed`` (each seed its own).

    Raises:
        UserError: for a missing or unknown key.
    """
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
        orders = row.get("orders", data.get("orders"))
        if not (orders is None or orders == "seed" or (isinstance(orders, list) and orders and all(
                type(order) is int for order in orders))):
            raise UserError(f"orders in {path} must be `seed` or a list of whole numbers, not {orders!r}.")
        scenarios = [(s, _ordered(row["scenario"], o, path)) for o, s in _pairs(orders, seeds)]
        for method in row["methods"]:
            for seed, scenario in scenarios:
                config: dict[str, Any] = {"scenario": scenario, "method": method, "seed": seed}
                for key in ("backbone", "source", "compute"):
                    value = row.get(key, data.get(key))
                    if value is not None:
                        config[key] = value
                jobs.append(Job(f"{_short(scenario)} {_short(method)} seed {seed}", config))
    return Suite(_name(data.get("name", path.stem), path), str(data.get("about", "")), tuple(jobs))


def _name(name: Any, path: Path) -> str:
    """A suite's page is called after it, and stands in the folder of its runs."""
    if isinstance(name, str) and re.fullmatch(r"\w[^/\\\0\n]{0,99}", name):
        return name
    raise UserError(f"name in {path} must begin with a letter or digit and hold no / and no \\, not {brief(name)}.")


def _pairs(orders: Any, seeds: list[int]) -> list[tuple[int | None, int]]:
    """(order, seed) of every run; no order where the suite gives none."""
    if orders == "seed":
        return [(seed, seed) for seed in seeds]
    return [(order, seed) for order in (orders or [None]) for seed in seeds]


def _ordered(scenario: Any, order: int | None, path: Path) -> Any:
    """The scenario with its class order; in a wrapper, that of the scenario within."""
    if order is None:
        return scenario
    whole = dict(scenario) if isinstance(scenario, Mapping) else {"class_path": scenario}
    if not isinstance(given := whole.get("init_args") or {}, Mapping):
        return scenario  # refused as every other run of it
    args = dict(given)
    if "of" in args:
        args["of"] = _ordered(args["of"], order, path)
    elif "order" in args:
        raise UserError(f"{_short(scenario)} in {path} has an order of its own beside `orders`; leave one of them out.")
    else:
        args["order"] = order
    return {**whole, "init_args": args}


def _short(part: Any) -> str:
    """What a line of progress calls a scenario or method: its name and, where the suite gives any, its settings."""
    if not isinstance(part, Mapping):
        return str(part).rpartition(":")[2].rpartition(".")[2]
    given = part.get("init_args")
    settings = ", ".join(f"{k}={_short(v)}" if isinstance(v, Mapping) else f"{k}={v}" for k, v in (
        given.items() if isinstance(given, Mapping) else ()))
    return _short(part.get("class_path", "?")) + (f"({settings})" if settings else "")


def run_suite(suite: Suite, runs: Path, *, jobs: int = 0, again: bool = False, keep: bool = False,
              overrides: Sequence[str] = (), progress: Callable[[str, Mapping[str, Any]], None] | None = None,
              launcher: Launcher = local) -> Outcome:
    """Run every job and return what came of it. A failing run is recorded and named; the others go on.

    What has finished in ``runs`` with the same config and the same code is not run again, and what was stopped or killed
    goes on from its last checkpoint. Edited code of a method, a scenario or cl-bench itself is other code.

    Args:
        jobs: processes; 0 = one per core. The number changes no result.
        again: run everything anew.
        keep: count runs as finished also where cl-bench's own code has changed since.
        overrides: options appended to every run, ``["--compute.device", "cpu"]``.
        progress: called in this process with ("start" | "resume" | "finish" | "error" | "skip", facts).
        launcher: executes the runs; see :mod:`.launchers`.
    """
    say = progress if progress is not None else lambda kind, facts: None
    configs = _resolved(suite.jobs, overrides)  # a mistake in any run is told before the first starts
    earlier = _Earlier(runs if not again else None, keep)
    outcome, folders, first = Outcome(), dict.fromkeys(range(len(configs)), Path()), dict[str, int]()
    todo, resume = [], dict[str, str]()
    for k, config in enumerate(configs):
        key, label = _key(config), suite.jobs[k].label
        if first.setdefault(key, k) != k:
            say("skip", {"label": label, "message": f"the same run as {suite.jobs[first[key]].label}"})
        elif (folder := earlier.finished(config)) is not None:
            folders[k] = folder
            outcome.skipped.append(label)
            say("skip", {"label": label, "message": "skipped, finished earlier"})
        else:
            todo.append(k)
            if (folder := earlier.begun(config)) is not None:
                resume[key] = str(folder)

    def starting() -> Iterator[Mapping[str, Any]]:
        for k in todo:
            say("resume" if _key(configs[k]) in resume else "start", {"label": suite.jobs[k].label})
            yield configs[k]

    open_ones, lost = set(todo), "the launcher gave no result for it"
    results = iter(launcher(starting(), _RunOne(str(runs), suite.name, resume), workers=jobs))
    try:
        while True:
            try:
                index, where, error = next(results)
                k = todo[index]
                open_ones.remove(k)
            except StopIteration:
                break
            except Exception as fault:  # of somebody else's launcher: what it did until now is kept
                lost = f"the launcher failed: {told(fault)}"
                break
            if error is None and not (Path(where) / "DONE").is_file():
                error = f"the launcher calls it finished, and {where or 'its folder'} holds no finished run"
            if error is None:
                folders[k] = Path(where)
            else:
                outcome.failures.append(f"{suite.jobs[k].label}: {error}")
            say("finish" if error is None else "error", {"label": suite.jobs[k].label, "message": error})
    finally:
        if hasattr(results, "close"):
            results.close()  # an interrupt stops the workers now
    for k in sorted(open_ones):
        outcome.failures.append(f"{suite.jobs[k].label}: {lost}")
        say("error", {"label": suite.jobs[k].label, "message": lost})
    outcome.folders = [f for f in folders.values() if f != Path()]
    return outcome


def _resolved(jobs: Sequence[Job], overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Every job's whole config; each scenario is walked and each method built once, which shows what does not fit."""
    from .config import parse
    from .rehearsal import Rehearsal

    rehearsal, configs = Rehearsal(), []
    for job in jobs:
        try:
            config = parse(list(overrides), job.config)
            rehearsal(config)
        except UserError as fault:
            raise UserError(f"{job.label}: {fault}") from fault
        configs.append(config)
    return configs


def _key(config: Mapping[str, Any]) -> str:
    """Hash of a config as a record holds it, by which its run is recognised."""
    from ..records.results import plain

    return hashlib.sha256(json.dumps(plain(config), sort_keys=True).encode()).hexdigest()


class _Earlier:
    """What a folder of runs holds of the same configs, made by the same code."""

    def __init__(self, runs: Path | None, keep: bool) -> None:
        from ..records.results import load_all

        self.keep = keep
        self.runs: dict[str, list[Any]] = {}
        for run in load_all(runs) if runs is not None and runs.is_dir() else ():
            self.runs.setdefault(_key(run.record["config"]), []).append(run)

    def finished(self, config: Mapping[str, Any]) -> Path | None:
        from ..records.results import complete

        for run in self._of(config, self.keep):
            if run.record["status"] == "finished" and complete(run.folder):
                return Path(run.folder)
        return None

    def begun(self, config: Mapping[str, Any]) -> Path | None:
        """The latest that did not finish: it goes on from its last checkpoint, or from its start where it has none."""
        for run in self._of(config, False):
            if run.record["status"] != "finished":
                return Path(run.folder)
        return None

    def _of(self, config: Mapping[str, Any], keep: bool) -> list[Any]:
        """Runs of this config and the code that is here now, latest first."""
        from ..records.source_digest import code_digest, same
        from .rehearsal import sources

        if not (runs := self.runs.get(_key(config))):
            return []
        code = sources(config)
        return [run for run in reversed(runs) if all(
            (keep and ours) or same(run.record[root].get("source_digest"), digest) for root, (digest, ours) in code.items()
        ) and (keep or same((run.record.get("environment") or {}).get("code_digest"), code_digest()))]


@dataclass(frozen=True)
class _RunOne:
    """Runs a config, anew or on from where it was; one bad run costs one row. Only the user's interrupt passes."""

    runs: str
    suite: str
    resume: Mapping[str, str]

    def __call__(self, config: Mapping[str, Any]) -> Result:
        from ..engine.runner import run
        from .config import plan_from

        folder = self.resume.get(_key(config))
        try:
            return str(run(plan_from(config, self.suite), Path(self.runs), resume=Path(folder) if folder else None)), None
        except UserError as fault:
            return "", str(fault)
        except (Exception, SystemExit) as fault:
            if os.environ.get("CL_BENCH_DEBUG"):
                traceback.print_exc()
            return "", told(fault)

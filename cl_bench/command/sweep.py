"""A suite: many runs from one file, in parallel processes, each as if it ran alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError, told
from .earlier import Earlier
from .estimate import Expected, expected
from .launchers import Launcher, local
from .rehearsal import Rehearsal
from .suites import Job, Suite, read_suite
from .task import Task, key_of

__all__ = ["Job", "Outcome", "Suite", "read_suite", "run_suite"]


@dataclass
class Outcome:
    """How a suite ended: folders of finished runs in the file's order, one sentence per failure, and the labels of those
    that had finished earlier."""

    folders: list[Path] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def run_suite(suite: Suite, runs: Path, *, jobs: int = 0, again: bool = False, keep: bool = False,
              overrides: Sequence[str] = (), progress: Callable[[str, Mapping[str, Any]], None] | None = None,
              launcher: Launcher = local, elsewhere: bool = False, only_failed: bool = False,
              before: Callable[[Expected], None] | None = None) -> Outcome:
    """Run every job and return what came of it. A failing run is recorded and named; the others go on.

    What has finished in ``runs`` with the same config, the same code and the same data is not run again, and what was stopped
    or killed goes on from its last checkpoint. Edited code of a method, a scenario or cl-bench itself is other code, and other
    files under the same path are other data or weights.

    Args:
        jobs: processes; 0 = one per core. The number changes no result.
        again: run everything anew.
        keep: count runs as finished also where cl-bench's own code has changed since.
        overrides: options appended to every run, ``["--compute.device", "cpu"]``.
        progress: called in this process with ("start" | "resume" | "finish" | "error" | "skip", facts).
        launcher: executes the runs; see :mod:`.launchers`.
        elsewhere: the runs go to other machines, whose devices are not looked for here.
        only_failed: run nothing but what failed, was stopped or killed earlier.
        before: told what is to come, once everything has been checked and before the first run starts.
    """
    say = progress if progress is not None else lambda kind, facts: None
    getattr(getattr(launcher, "func", launcher), "prepare", lambda workers: None)(jobs)  # while everything is checked
    earlier = Earlier(runs, keep, again)
    rehearsal = Rehearsal(elsewhere, earlier.knows)
    configs = _resolved(suite.jobs, overrides, rehearsal)  # a mistake in any run is told before the first starts
    earlier.protocol = rehearsal.protocol
    outcome, folders, first = Outcome(), dict.fromkeys(range(len(configs)), Path()), dict[str, int]()
    todo, resume = [], dict[str, str]()
    for k, config in enumerate(configs):
        key, label = key_of(config), suite.jobs[k].label
        if first.setdefault(key, k) != k:
            say("skip", {"label": label, "message": f"the same run as {suite.jobs[first[key]].label}"})
        elif (folder := earlier.finished(config)) is not None:
            folders[k] = folder
            outcome.skipped.append(label)
            say("skip", {"label": label, "message": "skipped, finished earlier"})
        elif (folder := earlier.begun(config)) is not None:
            resume[key] = str(folder)
            todo.append(k)
        elif only_failed:
            outcome.skipped.append(label)
            say("skip", {"label": label, "message": "skipped, never begun"})
        else:
            todo.append(k)
    if before is not None:
        before(expected(suite, configs, todo, earlier, rehearsal, jobs))

    def starting() -> Iterator[Mapping[str, Any]]:
        for k in todo:
            say("resume" if key_of(configs[k]) in resume else "start", {"label": suite.jobs[k].label})
            yield configs[k]

    open_ones, lost = set(todo), "the launcher gave no result for it"
    results = iter(launcher(starting(), Task(str(runs), suite.name, resume), workers=jobs))
    try:
        while True:
            try:
                index, where, error = next(results)
                k = todo[index]
                open_ones.remove(k)
            except StopIteration:
                break
            except Exception as fault:  # of somebody else's launcher: what it did until now is kept
                if isinstance(fault, UserError) and len(open_ones) == len(todo):
                    raise  # a mistake in its options, or what it stands on is not here
                lost = f"the launcher failed: {told(fault)}"
                break
            if error is None and not (Path(where) / "DONE").is_file():
                error = f"the launcher calls it finished, and {where or 'its folder'} holds no finished run"
            if error is None:
                folders[k] = Path(where)
            else:
                outcome.failures.append(f"{suite.jobs[k].label}: {error}")
            say("finish" if error is None else "error", {"label": suite.jobs[k].label, "message": error,
                                                        "folder": where if error is None else None})
    finally:
        if hasattr(results, "close"):
            results.close()  # an interrupt stops the workers now
    for k in sorted(open_ones):
        outcome.failures.append(f"{suite.jobs[k].label}: {lost}")
        say("error", {"label": suite.jobs[k].label, "message": lost})
    outcome.folders = [f for f in folders.values() if f != Path()]
    return outcome


def _resolved(jobs: Sequence[Job], overrides: Sequence[str], rehearsal: Rehearsal) -> list[dict[str, Any]]:
    """Every job's whole config; each scenario is walked and each method built once, which shows what does not fit."""
    from .config import parse

    configs = []
    for job in jobs:
        try:
            config = parse(list(overrides), job.config)
            rehearsal(config)
        except UserError as fault:
            raise UserError(f"{job.label}: {fault}") from fault
        configs.append(config)
    return configs

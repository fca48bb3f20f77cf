"""Runs as array jobs of Slurm through submitit, or of submitit's local executor. What a job finished is on disk: killing this
process ends no job, and the same command finds those that are still queued or running and waits for them.

``RUNS/.slurm`` holds ``jobs.jsonl`` (which job has which runs), a result per run, which run folder each has begun, and the
jobs' logs. The folder of records must be on a path that all machines share.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ..errors import Terminated, UserError
from ..ranges import Amount, Count, Whole
from .launch import needs_package
from .launchers import Config, Result, cores
from .task import Task, key_of

__all__ = ["slurm"]

LARGEST = 1000  # jobs of one array: Slurm's own default limit is 1,001
LATE = 15.0  # seconds that a shared file system may take to show what a job has written


def slurm(configs: Iterable[Config], run: Task, *, workers: Whole = 0, time: str = "60", gres: str = "", partition: str = "",
          account: str = "", qos: str = "", cpus_per_run: Count = 1, memory_per_run: Amount = 0.0, runs_per_job: Count = 1,
          requeues: Whole = 3, sbatch: str = "", cluster: Literal["slurm", "local"] = "slurm",
          ) -> Iterator[tuple[int, str, str | None]]:
    """One array job; a job that is pre-empted or reaches its time goes back into the queue and on from its checkpoint.

    Args:
        workers: jobs at once; 0: as many as Slurm lets run (with cluster local: one per core).
        time: of a job, in minutes or as Slurm writes it (``4:00:00``, ``1-12:00:00``).
        gres: what a job asks for besides cores, such as ``gpu:1``.
        cpus_per_run: cores of a job.
        memory_per_run: GiB of a job; 0: the partition's default.
        runs_per_job: short runs, one after another, that share a job: less for the scheduler to do.
        requeues: how often a job that reached its time goes back into the queue; being pre-empted does not count.
        sbatch: more options of sbatch, such as ``--constraint=a100 --nice=10``.
        cluster: ``local`` runs submitit's jobs as processes of this machine.

    Raises:
        UserError: where submitit is not installed, Slurm is not here, or sbatch refuses the jobs.
    """
    submitit = needs_package("submitit", "slurm", "slurm")
    there = _Cluster(submitit, cluster, _Book(Path(run.runs).resolve() / ".slurm"))
    settings = {"timeout_min": minutes(time), "name": "cl-bench", "cpus_per_task": cpus_per_run,
                **({"mem_gb": memory_per_run} if memory_per_run else {})}
    if cluster == "slurm":
        more = {"requeue": True, **({"gres": gres} if gres else {}), **_options(sbatch)}
        named = {"slurm_partition": partition, "slurm_account": account, "slurm_qos": qos, "slurm_array_parallelism": workers}
        settings |= {"slurm_additional_parameters": more, **{k: v for k, v in named.items() if v}}
    executor = there.executor(settings, requeues)
    window = (workers or cores()) if cluster == "local" else 0  # submitit's local jobs all start at once
    yield from _executed(enumerate(configs), run, there, executor, window, runs_per_job)


slurm.elsewhere = True  # type: ignore[attr-defined]  # its devices are not this machine's


def _executed(source: Iterator[tuple[int, Config]], run: Task, there: _Cluster, executor: Any, window: int, together: int,
              ) -> Iterator[tuple[int, str, str | None]]:
    book = there.book
    open_ones: dict[str, tuple[int, str]] = {}  # key -> (index, job)
    gone: dict[str, float] = {}
    queued, alive = book.queued(), there.alive()
    began = time.monotonic()
    orderly = False
    try:
        more = True
        while more or open_ones:
            fresh: list[tuple[int, str, Config]] = []
            while more and (not window or len(open_ones) + len(fresh) < window * together):
                if (item := next(source, None)) is None:
                    more = False
                    break
                key = key_of(item[1])
                if (job := queued.get(key, "")) and alive is not None and job in alive:
                    open_ones[key] = item[0], job  # of an earlier call, and still at it
                else:
                    book.forget(key)
                    fresh.append((item[0], key, item[1]))
            for index, key, job in there.submitted(executor, run, fresh, together):
                open_ones[key] = index, job
            for key, (index, job) in list(open_ones.items()):
                if (result := book.result(key)) is not None:
                    del open_ones[key]
                    yield index, *result
                elif (alive is not None and job not in alive and job in there.seen
                      and time.monotonic() - gone.setdefault(key, time.monotonic()) > there.late):
                    del open_ones[key]
                    yield index, "", there.why(job)
            if open_ones:
                time.sleep(min(10.0, 0.5 + (time.monotonic() - began) / 100))
                alive = there.alive()
                there.seen.update(job for _, job in open_ones.values())
        orderly = True
    finally:
        if not orderly:
            there.cancel([job for _, job in open_ones.values()])


def minutes(text: str) -> int:
    """Slurm's time: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS; rounded up.

    Raises:
        UserError: where it is none of them.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if found is None:
        raise UserError(f"--time {text} must be minutes, or Slurm's HH:MM:SS or D-HH:MM:SS.")
    days, a, b, c = (int(part) if part else None for part in found.groups())
    if days is not None:
        seconds = days * 86_400 + (a or 0) * 3600 + (b or 0) * 60 + (c or 0)
    elif c is not None:
        seconds = (a or 0) * 3600 + (b or 0) * 60 + c
    else:
        seconds = (a or 0) * 60 + (b or 0)
    if not seconds:
        raise UserError("--time must be above 0.")
    return -(-seconds // 60)


def _options(text: str) -> dict[str, Any]:
    """``--constraint=a100 --exclusive`` as submitit takes them."""
    found: dict[str, Any] = {}
    for word in shlex.split(text):
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            raise UserError(f"--sbatch takes options such as --constraint=a100, not {word!r}.")
        found[name] = value if equals else True
    return found


class _Book:
    """What is written beside the records, so that jobs and this process know of each other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("results", "begun", "log"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def queued(self) -> dict[str, str]:
        """key -> job, the latest of each."""
        found: dict[str, str] = {}
        with contextlib.suppress(FileNotFoundError):
            for line in (self.folder / "jobs.jsonl").read_text().splitlines():
                with contextlib.suppress(ValueError):  # a line cut off when this process was killed
                    entry = json.loads(line)
                    found |= dict.fromkeys(entry["keys"], entry["job"])
        return found

    def note(self, job: str, keys: Sequence[str]) -> None:
        with open(self.folder / "jobs.jsonl", "a") as file:
            file.write(json.dumps({"job": job, "keys": list(keys)}) + "\n")

    def forget(self, key: str) -> None:
        for name in ("results", "begun"):
            (self.folder / name / key).unlink(missing_ok=True)

    def result(self, key: str) -> Result | None:
        try:
            folder, error = json.loads((self.folder / "results" / key).read_text())
        except FileNotFoundError:
            return None
        return folder, error

    def write(self, name: str, key: str, value: Any) -> None:
        from ..records.writer import write_atomically

        text = json.dumps(value, default=lambda path: str(path.resolve()))
        write_atomically(self.folder / name / key, text.encode())

    def begun(self, key: str) -> Path | None:
        """The folder of a run that a job had begun before it was put back into the queue."""
        with contextlib.suppress(FileNotFoundError):
            folder = Path(json.loads((self.folder / "begun" / key).read_text()))
            return folder if (folder / "run.json").is_file() else None
        return None


class _Cluster:
    """Submits, asks what still lives, and cancels."""

    def __init__(self, submitit: Any, name: str, book: _Book) -> None:
        self.submitit, self.name, self.book = submitit, name, book
        self.mine: dict[str, Any] = {}
        self.seen: set[str] = set()  # jobs that were asked for at least once after they had been submitted
        self.late = LATE if name == "slurm" else 1.0

    def executor(self, settings: dict[str, Any], requeues: int) -> Any:
        try:
            made = self.submitit.AutoExecutor(folder=str(self.book.folder / "log"), cluster=self.name,
                                              **{f"{self.name}_max_num_timeout": requeues} if self.name == "slurm" else {})
            made.update_parameters(**settings)
        except (RuntimeError, TypeError, ValueError) as fault:
            raise UserError(f"--launcher slurm: {' '.join(str(fault).split())[:300]}.") from fault
        return made

    def submitted(self, executor: Any, run: Task, fresh: Sequence[tuple[int, str, Config]], together: int,
                  ) -> Iterator[tuple[int, str, str]]:
        groups = [fresh[k:k + together] for k in range(0, len(fresh), together)]
        for start in range(0, len(groups), LARGEST):
            chunk = groups[start:start + LARGEST]
            batches = [_Batch(replace(run, resume={k: run.resume[k] for _, k, _ in group if k in run.resume}),
                              str(self.book.folder), os.getcwd(), tuple((key, config) for _, key, config in group))
                       for group in chunk]
            try:
                with executor.batch():
                    jobs = [executor.submit(batch) for batch in batches]
            except (self.submitit.core.utils.FailedJobError, self.submitit.core.utils.FailedSubmissionError) as fault:
                raise UserError(f"sbatch refused the jobs: {' '.join(str(fault).split())[-300:]}.") from fault
            for job, group in zip(jobs, chunk, strict=True):
                self.mine[job.job_id] = job
                self.book.note(job.job_id, [key for _, key, _ in group])
                yield from ((index, key, job.job_id) for index, key, _ in group)

    def alive(self) -> set[str] | None:
        """Jobs that wait or run; None where it cannot be told now."""
        if self.name == "local":
            noted = {*self.book.queued().values()} - {*self.mine}
            return {job for job, made in self.mine.items() if not made.done()} | {job for job in noted if _lives(job)}
        try:
            asked = subprocess.run(["squeue", "--noheader", "--array", "--format=%i", f"--user={os.getuid()}"],
                                   capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return set(asked.stdout.split()) if asked.returncode == 0 else None

    def why(self, job: str) -> str:
        log = self.book.folder / "log"
        state = ""
        if self.name == "slurm":
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                said = subprocess.run(["scontrol", "show", "job", job, "-o"], capture_output=True, text=True, timeout=60)
                found = re.search(r"JobState=(\S+)", said.stdout)
                state = f" ({found[1]})" if found else ""
        return (f"its job {job} ended without a result{state}; {log}/{job}_0_log.err says more. The same command goes on "
                "with it.")

    def cancel(self, jobs: Sequence[str]) -> None:
        """What nobody waits for any more ends; runs that have begun are recorded as stopped."""
        unique = list(dict.fromkeys(jobs))
        if self.name == "slurm" and unique:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                for k in range(0, len(unique), LARGEST):
                    subprocess.run(["scancel", *unique[k:k + LARGEST]], capture_output=True, timeout=60)
        for job in unique if self.name == "local" else ():
            if job in self.mine:
                self.mine[job].cancel(check=False)


def _lives(pid: str) -> bool:
    try:
        return Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, ValueError):
        return False


# -- inside a job -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Batch:
    """The runs of one job, one after another. Its exit code: 0 where all finished, 1 where one failed."""

    run: Task
    book: str
    folder: str
    items: tuple[tuple[str, Config], ...]

    def __call__(self) -> None:
        with contextlib.suppress(OSError):
            os.chdir(self.folder)
        book, failed = _Book(Path(self.book)), 0
        for key, config in self.items:
            if (result := book.result(key)) is None:  # else done before the job was put back into the queue
                begun = book.begun(key)
                task = self.run if begun is None else self.run.at(Path(self.run.runs), begun, config)
                result = _stoppable(task, config, partial(book.write, "begun", key))
                book.write("results", key, result)
            failed += result[1] is not None
        if failed:
            raise RuntimeError(f"{failed} of {len(self.items)} runs failed; their records say why")

    def checkpoint(self) -> Any:
        """What submitit puts into the queue again: what has finished is not run again, what was begun goes on."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _stoppable(task: Task, config: Config, started: Any) -> Result:
    """Execute one run; where the job must go, the run ends as ``stopped`` first, and the job then as submitit has it."""
    import submitit

    soon = submitit.JobEnvironment._usr_sig()
    before = {number: signal.getsignal(number) for number in (soon, signal.SIGTERM)}
    came: list[int] = []

    def stop(number: int, frame: Any) -> None:
        if not came:
            came.append(number)
            raise Terminated(signal.Signals(number).name)

    for number in before:
        signal.signal(number, stop)
    try:
        return task(config, started)
    except KeyboardInterrupt:
        back = before[soon]
        if came and came[0] == soon and callable(back):
            back(soon, None)  # into the queue again, and out of this process
        sys.exit(143)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

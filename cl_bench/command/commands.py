"""What each command of the command line does; each imports what it needs when it is called."""

from __future__ import annotations

import argparse
import functools
import gc
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError, no_room

__all__ = ["Stopped", "check", "compare", "given_folders", "listed", "read_records", "run", "select", "serve", "suite", "sync",
           "ui"]


class Stopped(KeyboardInterrupt):
    """A run or suite was interrupted; the message says how it goes on."""


def given_folders(o: argparse.Namespace) -> list[Path]:
    """The folders of records that were named, by position or by --runs; "runs" where none was."""
    stands = getattr(o, "folders", None) or []
    return [*(stands if isinstance(stands, list) else [stands]), *(o.runs or [])] or [Path("runs")]


def _one(o: argparse.Namespace) -> Path:
    folders = given_folders(o)
    if len(folders) > 1:
        raise UserError(f"cl-bench {o.command} works on one folder of records; it was given {', '.join(map(str, folders))}.")
    return folders[0]


def run(o: argparse.Namespace, rest: list[str]) -> int:
    from ..records.results import load, uncollected
    from ..records.writer import complete
    from .config import parse, plan_from
    from .progress import RunProgress
    from .rehearsal import try_method
    from .task import recorded

    if o.seeds is not None:
        return _seeds(o, rest)
    for option in ("jobs", "again", "keep", "retry_failed", "html"):
        if getattr(o, option):
            raise UserError(f"--{option.replace('_', '-')} is for several runs; give --seeds 0..4, or leave it out.")
    if o.launcher != "local":
        raise UserError("--launcher is for several runs; give --seeds 0..4, or leave it out.")
    if o.resume is not None:
        if rest:
            raise UserError(f"a resumed run keeps its config; leave out {rest[0]}.")
        record = load(o.resume)
        o.resume = record.folder
        if complete(o.resume):
            raise UserError(f"{o.resume} has finished; there is nothing to resume.")
        try:
            config = parse([], recorded(record.record.get("config")))
        except UserError as fault:
            raise UserError(f"{o.resume} cannot be resumed, its config is none: {fault}") from fault
        runs = o.resume.resolve().parent
    with uncollected():  # torch and all that a run needs is imported here
        if o.resume is None:
            config, runs = parse(rest), _one(o)
        plan = plan_from(config, None if o.resume is None else record.record.get("suite"))
        _writable(runs)
        if o.resume is None:
            try_method(plan)
        from .processes import execute

    _keep_memory(o)
    begun: list[Path] = [] if o.resume is None else [o.resume]

    def note(kind: str, facts: Any) -> None:
        if kind == "start" and not begun:
            begun.append(runs / str(facts["id"]))

    with _tracker(o, runs) as tracker, RunProgress() as progress:
        try:
            folder = execute(plan, runs, listen=_both(note, progress, tracker), resume=o.resume)
        except KeyboardInterrupt as stop:
            raise Stopped(_how_to_go_on(begun)) from stop
        except Exception as fault:
            if no_room(fault):
                raise UserError(f"there is no space left on the disk of {runs}: make room; then {_how_to_go_on(begun)}."
                                ) from fault
            raise
    from rich.console import Console

    from ..compare.matrix_text import matrix_text
    from ..compare.terminal import terminal

    _tables([folder])
    if text := matrix_text(load(folder).matrix, terminal(Console()).width):
        print(f"{text}\n")
    print(f"record: {folder}")
    return 0


def _seeds(o: argparse.Namespace, rest: list[str]) -> int:
    """One config with several seeds: a suite without a file."""
    from .config import named, parse
    from .grid import seeds_of
    from .suites import Job, Suite

    if o.resume is not None or any(word.partition("=")[0] == "--seed" for word in rest):
        raise UserError(f"--seeds stands for several runs; leave out {'--resume' if o.resume is not None else '--seed'}.")
    config, seeds = parse(rest), seeds_of(o.seeds, "--seeds")
    facts = [named(config, root) for root in ("scenario", "method")]
    label, name = " ".join(f["label"] for f in facts), "-".join(re.split(r"\W", f["name"])[0] for f in facts)
    jobs = tuple(Job(f"{label} seed {seed}", {**config, "seed": seed}) for seed in seeds)
    return _suite(o, Suite(name or "seeds", "", jobs), [], _one(o))


def _how_to_go_on(begun: Sequence[Path]) -> str:
    if not begun or not (begun[0] / "run.json").is_file():
        return "nothing was recorded yet"
    if (begun[0] / "checkpoint").exists():
        return f"`cl-bench run --resume {begun[0]}` goes on from its last checkpoint"
    return f"the record is {begun[0]}, and there is no checkpoint yet"


def suite(o: argparse.Namespace, rest: list[str]) -> int:
    from .config import config_file
    from .grid import grid_options
    from .sweep import read_suite

    if any(word.partition("=")[0] == "--label" for word in rest):
        raise UserError("--label names the runs of one method; in a suite it would give all methods one name.")
    suite = read_suite(file := config_file(o.suite), grid_options(o.grid))
    if o.check or o.dry_run:
        from .trial import trial

        return trial(suite, file, rest, check_only=not o.dry_run)
    return _suite(o, suite, rest, _one(o))


def _suite(o: argparse.Namespace, suite: Any, rest: list[str], runs: Path) -> int:
    """Run a suite, then its tables, its page and its tracking."""
    from .launch import launcher_of
    from .progress import SuiteProgress
    from .sweep import run_suite

    launcher, options, rest = launcher_of(o.launcher, rest)
    for axis in suite.swept:
        if any(word.partition("=")[0] == f"--{axis}" for word in rest):
            raise UserError(f"--{axis} is given beside a grid that goes over it; leave one of them out.")
    if o.again and o.retry_failed:
        raise UserError("--again runs everything and --retry-failed only what failed; leave one of them out.")
    if o.html is not None:
        _page(o.html)
    _writable(runs)
    _keep_memory(o)
    with SuiteProgress(suite.name, len(suite.jobs)) as progress:
        try:
            outcome = run_suite(suite, runs, jobs=o.jobs, again=o.again, keep=o.keep, overrides=rest, progress=progress,
                                launcher=functools.partial(launcher, **options), before=progress.expected,
                                elsewhere=getattr(launcher, "elsewhere", False), only_failed=o.retry_failed)
        except KeyboardInterrupt as stop:
            finished = _finished_of(suite.name, runs)
            page = f"; the page of the {_runs(len(finished))} that finished is {_suite_page(o, suite.name, runs, finished)}" \
                if finished else ""
            raise Stopped(f"the same command runs what has not finished{page}") from stop
    if outcome.skipped:
        print(f"{_runs(len(outcome.skipped))} skipped: finished earlier with the same config and code (--again runs them anew)")
    if outcome.folders:
        html = _suite_page(o, suite.name, runs, outcome.folders)
        with _tracker(o, runs) as tracker:
            if tracker is not None:
                tracker.sync(outcome.folders)
        print(f"page: {html.resolve()}")
    for sentence in outcome.failures:
        print(f"failed: {sentence}", file=sys.stderr)
    return 1 if outcome.failures else 0


def _keep_memory(o: argparse.Namespace) -> None:
    """This process is the command's own: what its allocator keeps is nobody else's."""
    if o.allocator == "keep":
        from ..engine.allocator import keep_memory

        keep_memory()


def _finished_of(suite: str, runs: Path) -> list[Path]:
    """The folders of a suite's runs that have finished so far."""
    from ..records.results import load_all

    return [run.folder for run in (load_all(runs) if runs.is_dir() else ()) if run.status == "finished"
            and run.record.get("suite") == suite]


def _suite_page(o: argparse.Namespace, suite: str, runs: Path, folders: Sequence[Path]) -> Path:
    """Tables on the terminal and the page of a suite's finished runs; where the page lies."""
    html = o.html or runs / f"{suite}.html"
    title = f"cl-bench: {suite}"
    try:
        _tables(folders, html=html, title=title, say_page=False)
    except UserError as fault:  # runs of one scenario under two protocols: what they cost is kept, a table for each
        print(f"note: {fault}", file=sys.stderr)
        _tables(folders, html=html, title=title, say_page=False, by="fingerprint")
    return Path(html)


def listed(o: argparse.Namespace, rest: list[str]) -> int:
    from .listing import show

    show(o.kind, backbone=o.backbone, as_json=o.json)
    return 0


def check(o: argparse.Namespace, rest: list[str]) -> int:
    from ..testing.check import check_targets

    if not o.target and not o.all:
        raise UserError("say what to check: a name, file.py:Class, package.module:Class, or --all.")
    return 0 if check_targets(o.target, everything=o.all) else 1


def compare(o: argparse.Namespace, rest: list[str]) -> int:
    from ..compare.sheets import WRITERS

    if o.html is not None:
        _page(o.html)
    elif o.images:
        raise UserError("--images puts pictures into the page: name it with --html FILE.")
    for file in o.export:
        if file.suffix not in WRITERS:
            raise UserError(f"--export {file}: a table's file ends in {', '.join(WRITERS)}, which names its format.")
        if file.is_dir():
            raise UserError(f"--export {file} is a folder; name a file.")
    from ..compare.exports import TIDY, chosen, write_tidy

    for file in o.tidy:
        if file.stem not in TIDY or file.suffix != ".csv":
            raise UserError(f"--tidy {file}: the file's name says what it holds: {', '.join(f'{k}.csv' for k in TIDY)}.")
    made = _tables(given_folders(o), html=o.html, exports=o.export, by=o.by, mix=o.mix,
                   choose=lambda runs: chosen(runs, o.methods), columns=o.columns, over=o.overall,
                   images=o.images)
    for file in o.tidy:
        print(f"{file.stem}: {write_tidy(made, file.stem, file)}")
    return 0


def select(o: argparse.Namespace, rest: list[str]) -> int:
    from ..compare.comparison import compare
    from ..compare.selection import print_choices

    print_choices(compare(read_records(given_folders(o)), by="fingerprint"), o.source)
    return 0


def serve(o: argparse.Namespace, rest: list[str]) -> int:
    from ..compare.dashboard.serve import serve

    runs = _one(o)
    if not runs.is_dir():
        raise UserError(f"there is no folder {runs}; run something first, or name another.")
    serve(runs, host=o.host, port=o.port, remote=o.remote,
          ready=lambda url: print(f"{runs} at {url} (Ctrl-C ends it)", flush=True))
    return 0


def sync(o: argparse.Namespace, rest: list[str]) -> int:
    from ..records.tracking import Tracker, import_runs

    runs = _one(o)
    _writable(runs)
    if o.source:
        folders = import_runs(o.source, runs)
        print(f"{_runs(len(folders))} imported into {runs}")
        return 0
    with Tracker.open(o.tracking, runs, strict=True) as tracker:
        sent = tracker.sync()
    print(f"{_runs(sent)} sent to {tracker.uri}")
    return 0


def _runs(n: int) -> str:
    return f"{n} run" if n == 1 else f"{n} runs"


def ui(o: argparse.Namespace, rest: list[str]) -> int:
    from ..records.tracking import ui

    return ui(o.tracking, _one(o), host=o.host, port=o.port, remote=o.remote)


def _tables(folders: Sequence[Path], *, html: Path | None = None, exports: Sequence[Path] = (), by: str = "scenario",
            mix: bool = False, title: str = "cl-bench", say_page: bool = True, choose: Callable[[Any], Any] | None = None,
            columns: Sequence[str] = (), over: bool = False, images: bool = False) -> Any:
    from ..compare.comparison import compare
    from ..compare.exports import with_columns
    from ..compare.overall import print_overall
    from ..compare.sheets import export
    from ..compare.tables import print_tables

    runs = read_records(folders)
    comparison = with_columns(compare(choose(runs) if choose else runs, by=by, mix=mix), columns)
    if over and not print_overall(comparison, columns):
        raise UserError("no two scenarios here share a metric and a method; leave out --overall for a table of each.")
    if not over:
        print_tables(comparison)
    for file in exports:
        print(f"table: {export(comparison, file, over, columns)}")
    if html is not None:
        from ..compare.dashboard import render

        pictures = None
        if images:
            from .thumbnails import thumbnails

            pictures = thumbnails(comparison, lambda text: print(text, file=sys.stderr))
        render(comparison, html, title=title, pictures=pictures)
        if say_page:
            print(f"page: {html.resolve()}")
    return comparison


def read_records(folders: Sequence[Path]) -> Any:
    """The runs of the folders; those that cannot be read are said."""
    from ..records.results import load_all

    if missing := [r for r in folders if not r.exists()]:
        raise UserError(f"there is no folder {missing[0]}; give run folders or folders of them.")
    runs = load_all(folders)
    gc.freeze()  # they stay until the command ends: nothing in them is garbage to look for
    for problem in runs.problems:
        print(f"left out: {problem}", file=sys.stderr)
    if not runs and runs.problems:
        raise UserError(f"none of the {len(runs.problems)} runs here can be read; the lines above say why.")
    if not runs:
        raise UserError("there are no runs here yet; `cl-bench suite quickstart` makes some.")
    return runs


def _page(file: Path) -> None:
    """Refuse before any work where the page could not be written."""
    if file.is_dir():
        raise UserError(f"--html {file} is a folder; name a file in it, such as {file / 'page.html'}.")
    _writable(file.parent, "--html")


def _writable(folder: Path, option: str = "--runs") -> None:
    """Refuse before any work where records could not be kept; nothing is made yet, so that a mistake leaves nothing behind."""
    try:
        there = next(parent for parent in (folder, *folder.absolute().parents) if os.path.lexists(parent))
        usable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
        problem = "" if usable else "it is not writable" if there.is_dir() else f"{there} is no folder"
    except (OSError, ValueError) as fault:
        problem = str(getattr(fault, "strerror", None) or fault)
    if problem:
        raise UserError(f"cannot make the folder {folder} ({problem}); choose another with {option}.")


def _tracker(o: argparse.Namespace, runs: Path) -> Any:
    """The MLflow sink, or nothing for ``--tracking none``."""
    from contextlib import nullcontext

    if o.tracking == "none":
        return nullcontext(None)
    from ..records.tracking import Tracker

    return Tracker.open(o.tracking, runs)


def _both(*listeners: Any) -> Any:
    def listen(kind: str, facts: Any) -> None:
        for listener in listeners:
            if listener is not None:
                listener(kind, facts)

    return listen


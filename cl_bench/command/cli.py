"""``cl-bench``: run, suite, list, check, compare, select, serve, sync, ui. Help and lists import nothing heavy."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from .. import __version__
from ..errors import UserError, told

__all__ = ["main"]

RUN_HELP = """\
options of a run (any of them may stand in the YAML file that --config names):
  --config FILE            a file, or the name of a shipped config; options given here win over it
  --scenario NAME          and --scenario.ARG VALUE; see `cl-bench list scenarios`
  --method NAME            and --method.ARG VALUE; a name, package.module:Class or path/to/file.py:Class
  --backbone NAME          and --backbone.ARG VALUE; default: the scenario's own
  --seed N                 one seed makes every random draw (default 0)
  --device cpu|cuda|auto   and --precision, --workers, --threads, --optimizers torch|fused|apex
  --source.epochs N        and --source.lr, --source.batch_size: the classifier a test stream starts from
  --checkpoint true|false  keep what it takes to resume (default true)
help on one part: --method.help NAME, --scenario.help NAME, --backbone.help NAME
"""


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints are one sentence like all others."""

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if choice is None:
            raise UserError(f"{message}; see `{self.prog} --help`.")
        known = [word.strip(" '") for word in choice[2].split(",")]
        near = difflib.get_close_matches(choice[1], known, n=1)
        raise UserError(f"{self.prog} has no {choice[1]!r}; " + (f"did you mean {near[0]}?" if near else
                        f"there are {', '.join(known)}."))


def _parser() -> argparse.ArgumentParser:
    p = _Parser(
        prog="cl-bench", description="Continual learning and test-time adaptation, benchmarked honestly.",
        epilog="First steps: `cl-bench suite quickstart`, `cl-bench list methods`, `cl-bench check mine.py:Mine`.")
    p.add_argument("--version", action="version", version=f"cl-bench {__version__}")
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    stored = _Parser(add_help=False)
    stored.add_argument("--runs", type=Path, default=Path("runs"), help="folder of records (default: runs)")
    tracked = _Parser(add_help=False)
    tracked.add_argument("--tracking", default=None, metavar="URI",
                         help="MLflow store (default: sqlite in the folder of records; 'none' for none)")
    sub = p.add_subparsers(dest="command", metavar="COMMAND", required=True)

    run = sub.add_parser("run", parents=[common, stored, tracked], help="run one method on one scenario",
                         formatter_class=argparse.RawDescriptionHelpFormatter, epilog=RUN_HELP)
    run.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run that was stopped (its folder)")

    suite = sub.add_parser("suite", parents=[common, stored, tracked], help="run a list of scenarios x methods x seeds")
    suite.add_argument("suite", help="a YAML file, or the name of a shipped suite (quickstart, ...)")
    suite.add_argument("--jobs", type=int, default=0, help="processes (default: one per core); changes no result")
    suite.add_argument("--again", action="store_true", help="run also what has finished with the same config and code")
    suite.add_argument("--keep", action="store_true", help="keep finished runs although cl-bench's own code has changed since")
    suite.add_argument("--launcher", default="local", help="what executes the runs (default: processes of this machine)")
    suite.add_argument("--html", type=Path, help="where the page goes (default: RUNS/<suite>.html)")

    lists = sub.add_parser("list", parents=[common], help="what there is: methods, scenarios, backbones, adapters, suites")
    lists.add_argument("kind", choices=["methods", "scenarios", "backbones", "adapters", "suites", "configs"])
    lists.add_argument("--backbone", help="with adapters: count trainable parameters on this backbone")
    lists.add_argument("--json", action="store_true", help="as JSON, for programs")

    check = sub.add_parser("check", parents=[common], help="check the contract of a method or scenario")
    check.add_argument("target", nargs="*", help="names, package.module:Class or path/to/file.py:Class")
    check.add_argument("--all", action="store_true", help="every registered method and scenario")

    compare = sub.add_parser("compare", parents=[common], help="tables and a page from records")
    compare.add_argument("runs", nargs="*", type=Path, default=[Path("runs")], help="run folders, or folders of them")
    compare.add_argument("--html", type=Path, help="write the self-contained page here")
    compare.add_argument("--export", type=Path, action="append", default=[], metavar="FILE",
                         help="write the table as FILE.csv, FILE.md or FILE.tex; may be repeated")
    compare.add_argument("--by", choices=["scenario", "fingerprint"], default="scenario",
                         help="one table per scenario (different protocols are refused), or one per protocol fingerprint")
    compare.add_argument("--mix", action="store_true", help="allow runs of different protocols in one table, and say so")

    select = sub.add_parser("select", parents=[common], help="choose settings without labels, and the gap to the oracle",
                            description="What label-free scorers choose among test-time runs: the settings of one method, "
                            "and all methods. Scores come from the records; labels are used for the gap to the oracle only.")
    select.add_argument("runs", nargs="*", type=Path, default=[Path("runs")], help="run folders, or folders of them")
    select.add_argument("--source", default="source", metavar="LABEL",
                        help="the model that does not adapt: candidates that collapse beside it are refused (default: source)")

    serve = sub.add_parser("serve", parents=[common], help="the page over a folder, updated while runs go on")
    serve.add_argument("runs", nargs="?", type=Path, default=Path("runs"))
    serve.add_argument("--host", default="127.0.0.1", help="loopback unless told otherwise (with --remote)")
    serve.add_argument("--port", type=int, default=8765, help="default: 8765; 0 takes a free one")
    serve.add_argument("--remote", action="store_true", help="allow an address that other machines reach: they can read "
                       "every record")

    sync = sub.add_parser("sync", parents=[common, stored, tracked], help="send to MLflow what it has not yet; or fetch")
    sync.add_argument("--from-mlflow", metavar="URI", dest="source", help="import the runs of an MLflow store as records")

    ui = sub.add_parser("ui", parents=[common, stored, tracked], help="MLflow's own UI on the store")
    ui.add_argument("--host", default="127.0.0.1")
    ui.add_argument("--port", type=int, default=5000)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0 well, 1 a run failed or a check did not pass, 2 a mistake to mend."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    for stream in (sys.stdout, sys.stderr):  # a terminal or pipe that knows no "↑" shows "?", and the command goes on
        if not (stream.encoding or "utf-8").lower().startswith("utf") and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        options, rest = _parser().parse_known_args(arguments)
        if rest and options.command not in ("run", "suite"):
            raise UserError(f"cl-bench {options.command} has no option {rest[0]!r}; see `cl-bench {options.command} --help`.")
        with _stoppable():
            return int(globals()[f"_{options.command}"](options, rest) or 0)
    except UserError as fault:
        if debug:
            raise
        print(f"cl-bench: {fault}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cl-bench: stopped; what was done is on disk.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `cl-bench list methods | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as fault:
        if debug:
            raise
        print(f"cl-bench: {told(fault)}; --debug shows the way there", file=sys.stderr)
        return 1


@contextmanager
def _stoppable() -> Iterator[None]:
    """A SIGTERM, as a cluster's scheduler sends it, ends the work like the user's Ctrl-C: recorded, and to be gone on with."""
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _run(o: argparse.Namespace, rest: list[str]) -> int:
    from ..records.results import load
    from .config import parse, plan_from
    from .progress import RunProgress

    _writable(o.runs)
    if o.resume is not None:
        if rest:
            raise UserError(f"a resumed run keeps its config; leave out {rest[0]}.")
        record = load(o.resume)
        if record.status == "finished":
            raise UserError(f"{o.resume} has finished; there is nothing to resume.")
        config, runs = dict(record.record["config"]), o.resume.resolve().parent
    else:
        config, runs = parse(rest), o.runs
    plan = plan_from(config, None if o.resume is None else record.record.get("suite"))
    from ..engine.runner import run

    with _tracker(o, runs) as tracker, RunProgress() as progress:
        folder = run(plan, runs, listen=_both(progress, tracker), resume=o.resume)
    _tables([folder])
    print(f"record: {folder}")
    return 0


def _suite(o: argparse.Namespace, rest: list[str]) -> int:
    from ..registry import GROUPS, find
    from .config import config_file
    from .launchers import local
    from .progress import SuiteProgress
    from .sweep import read_suite, run_suite

    if o.jobs < 0:
        raise UserError(f"--jobs {o.jobs}: give the number of processes, or 0 for one per core.")
    _writable(o.runs)
    suite = read_suite(config_file(o.suite))
    launcher = local if o.launcher == "local" else find(GROUPS["launchers"], o.launcher)
    if o.html is not None:
        _page(o.html)
    with SuiteProgress(suite.name, len(suite.jobs)) as progress:
        outcome = run_suite(suite, o.runs, jobs=o.jobs, again=o.again, keep=o.keep, overrides=rest, progress=progress,
                            launcher=launcher)
    if outcome.folders:
        html = o.html or o.runs / f"{suite.name}.html"
        _tables(outcome.folders, html=html, title=f"cl-bench: {suite.name}", say_page=False)
        with _tracker(o, o.runs) as tracker:
            if tracker is not None:
                tracker.sync(outcome.folders)
        print(f"page: {html.resolve()}")
    for sentence in outcome.failures:
        print(f"failed: {sentence}", file=sys.stderr)
    return 1 if outcome.failures else 0


def _list(o: argparse.Namespace, rest: list[str]) -> int:
    from .listing import show

    show(o.kind, backbone=o.backbone, as_json=o.json)
    return 0


def _check(o: argparse.Namespace, rest: list[str]) -> int:
    from ..testing.check import check_targets

    if not o.target and not o.all:
        raise UserError("say what to check: a name, file.py:Class, package.module:Class, or --all.")
    return 0 if check_targets(o.target, everything=o.all) else 1


def _compare(o: argparse.Namespace, rest: list[str]) -> int:
    from ..compare.tables import WRITERS

    if o.html is not None:
        _page(o.html)
    for file in o.export:
        if file.suffix not in WRITERS:
            raise UserError(f"--export {file}: a table's file ends in {', '.join(WRITERS)}, which names its format.")
        if file.is_dir():
            raise UserError(f"--export {file} is a folder; name a file.")
    _tables(o.runs, html=o.html, exports=o.export, by=o.by, mix=o.mix)
    return 0


def _select(o: argparse.Namespace, rest: list[str]) -> int:
    from ..compare.comparison import compare
    from ..compare.selection import print_choices

    print_choices(compare(_records(o.runs), by="fingerprint"), o.source)
    return 0


def _serve(o: argparse.Namespace, rest: list[str]) -> int:
    from ..compare.dashboard.serve import serve

    if not o.runs.is_dir():
        raise UserError(f"there is no folder {o.runs}; run something first, or name another.")
    serve(o.runs, host=o.host, port=o.port, remote=o.remote,
          ready=lambda url: print(f"{o.runs} at {url} (Ctrl-C ends it)", flush=True))
    return 0


def _sync(o: argparse.Namespace, rest: list[str]) -> int:
    from ..records.tracking import Tracker, import_runs

    _writable(o.runs)
    if o.source:
        folders = import_runs(o.source, o.runs)
        print(f"{_runs(len(folders))} imported into {o.runs}")
        return 0
    with Tracker.open(o.tracking, o.runs, strict=True) as tracker:
        sent = tracker.sync()
    print(f"{_runs(sent)} sent to {tracker.uri}")
    return 0


def _runs(n: int) -> str:
    return f"{n} run" if n == 1 else f"{n} runs"


def _ui(o: argparse.Namespace, rest: list[str]) -> int:
    from ..records.tracking import ui

    return ui(o.tracking, o.runs, host=o.host, port=o.port)


def _tables(folders: Sequence[Path], *, html: Path | None = None, exports: Sequence[Path] = (), by: str = "scenario",
            mix: bool = False, title: str = "cl-bench", say_page: bool = True) -> None:
    from ..compare.comparison import compare
    from ..compare.tables import export, print_tables

    runs = _records(folders)
    comparison = compare(runs, by=by, mix=mix)
    print_tables(comparison)
    for file in exports:
        print(f"table: {export(comparison, file)}")
    if html is not None:
        from ..compare.dashboard import render

        render(comparison, html, title=title)
        if say_page:
            print(f"page: {html.resolve()}")


def _records(folders: Sequence[Path]) -> Any:
    """The runs of the folders; those that cannot be read are said."""
    from ..records.results import load_all

    if missing := [r for r in folders if not r.exists()]:
        raise UserError(f"there is no folder {missing[0]}; give run folders or folders of them.")
    runs = load_all(folders)
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
    """Refuse before any work where records could not be kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise UserError(f"cannot make the folder {folder} ({fault.strerror}); choose another with {option}.") from fault
    if not os.access(folder, os.W_OK):
        raise UserError(f"the folder {folder} is not writable; choose another with {option}.")


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


if __name__ == "__main__":
    sys.exit(main())

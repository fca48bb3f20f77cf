"""``cl-bench``: run, suite, list, check, compare, select, serve, sync, ui. Help and lists import nothing heavy."""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from .. import __version__
from ..errors import Helped, Terminated, UserError, no_room, told
from . import commands, paper, sharing
from . import tune as tuning
from .streams import said

__all__ = ["main"]

RUN_HELP = """\
options of a run (any of them may stand in the YAML file that --config names):
  --config FILE            a file, or the name of a shipped config; options given here win over it
{options}
help on one part: --method.help NAME, --scenario.help NAME, --backbone.help NAME
"""
SUITE_HELP = """\
options of every run of the suite (they win over its file):
{options}
"""
OPTIONS = """\
  --scenario NAME          and --scenario.ARG VALUE; see `cl-bench list scenarios`
  --method NAME            and --method.ARG VALUE; a name, package.module:Class or path/to/file.py:Class
  --backbone NAME          and --backbone.ARG VALUE; default: the scenario's own
  --label TEXT             what tables call the method (default: its name and the arguments that were changed)
  --seed N                 one seed makes every random draw (default 0)
  --device cpu|cuda|auto   and --precision, --workers, --threads, --optimizers torch|fused|apex
  --layout channels_last   how images and convolutions lie in memory (auto: channels last); --compile true: a compiled trunk
  --devices N              processes that share the batches of each run; --strategy ddp|fsdp
  --source.epochs N        and --source.lr, --source.batch_size: the classifier a test stream starts from
  --checkpoint true|false  keep what it takes to resume (default true)"""


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints are one sentence like all others."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{' '.join(message.split())}; see `{self.prog} --help`.")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """argparse's own place for a word that is none of the choices; it would only write a message."""
        if action.choices is not None and value not in action.choices:
            known = list(map(str, action.choices))
            near = difflib.get_close_matches(str(value), known, n=1)
            raise UserError(f"{self.prog} has no {str(value)!r}; " + (f"did you mean {near[0]}?" if near else
                            f"there are {', '.join(known)}."))


def _folder(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError("a folder or file must have a name")
    try:
        named = b"\0" not in os.fsencode(text) and all(len(part) < 256 for part in os.fsencode(text).split(b"/"))
    except UnicodeEncodeError:
        named = False
    if not named:
        raise argparse.ArgumentTypeError(f"no folder or file can be called {text[:40]!a}")
    return Path(text)


def _word(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("it must not be empty")
    return text


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:6]) < 65536 and len(text) < 7):
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, not {text[:40]!r}")
    return int(text)


def _jobs(text: str) -> int:
    if text != "auto" and not (text.isascii() and text.isdigit() and len(text) < 6):
        raise argparse.ArgumentTypeError(f"give the number of processes, or auto for one per core, not {text[:40]!r}")
    return 0 if text == "auto" else int(text)


def _parser() -> argparse.ArgumentParser:
    p = _Parser(
        prog="cl-bench", description="Continual learning and test-time adaptation, benchmarked honestly.",
        epilog="First steps: `cl-bench suite quickstart`, `cl-bench list methods`, `cl-bench check mine.py:Mine`.")
    p.add_argument("--version", action="version", version=f"cl-bench {__version__}")
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    # Every command names the folder of records with --runs; those that only read records also take it as it stands.
    stored = _Parser(add_help=False)
    stored.add_argument("--runs", type=_folder, action="append", metavar="DIR", help="folder of records (default: runs)")
    read = _Parser(add_help=False, parents=[stored])
    read.add_argument("folders", nargs="*", type=_folder, metavar="DIR", help="the same: run folders, or folders of them")
    one = _Parser(add_help=False, parents=[stored])
    one.add_argument("folders", nargs="?", type=_folder, metavar="DIR", help="the same")
    tracked = _Parser(add_help=False)
    tracked.add_argument("--tracking", type=_word, default=None, metavar="URI",
                         help="MLflow store (default: sqlite in the folder of records; 'none' for none)")
    sub = p.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, act: Callable[[argparse.Namespace, list[str]], int], help: str,
                *parents: _Parser, **settings: Any) -> argparse.ArgumentParser:
        made = sub.add_parser(name, parents=[common, *parents], help=help, **settings)
        made.set_defaults(act=act)
        return made

    raw = argparse.RawDescriptionHelpFormatter
    run = command("run", commands.run, "run one method on one scenario", stored, tracked, formatter_class=raw,
                  epilog=RUN_HELP.format(options=OPTIONS))
    run.add_argument("--resume", type=_folder, metavar="RUN", help="go on with a run that was stopped (its folder)")

    run.add_argument("--seeds", type=_word, metavar="SEEDS", help="several runs, one per seed: 0..4, or 0,3,7")
    suite = command("suite", commands.suite, "run a list of scenarios x methods x seeds", stored, tracked, formatter_class=raw,
                    epilog=SUITE_HELP.format(options=OPTIONS))
    suite.add_argument("suite", help="a YAML file, or the name of a shipped suite (quickstart, ...)")
    suite.add_argument("--grid", action="append", default=[], metavar="OPTION=VALUES", help="go over an option of the runs: "
                       "method.rank=4,8,16, seed=0..4, method.lr=1e-4..1e-1:log4; may be repeated, every combination is run")
    for several in (run, suite):
        several.add_argument("--jobs", type=_jobs, default=0, metavar="N",
                             help="runs at once (default: auto, one per core); changes no result")
        several.add_argument("--again", action="store_true", help="run also what has finished with the same config and code")
        several.add_argument("--keep", action="store_true",
                             help="keep finished runs although cl-bench's own code or torch has changed since")
        several.add_argument("--retry-failed", action="store_true", help="run only what failed or was stopped earlier")
        several.add_argument("--launcher", type=_word, default="local", help="what executes the runs: local (processes of "
                             "this machine, the default), ray, slurm, or an entry point; its options stand beside it")
        several.add_argument("--html", type=_folder, help="where the page goes (default: RUNS/<suite>.html)")
        several.add_argument("--allocator", choices=["keep", "system"], default="keep", help="keep: memory that is free stays "
                             "for the next batch (default, glibc alone); system: as the machine does; changes no number")
    suite.add_argument("--check", action="store_true", help="run nothing: say what data and weights are missing, verify what "
                       "is there, estimate time and memory")
    suite.add_argument("--dry-run", action="store_true", help="run all of it on small synthetic copies of the data with a tiny "
                       "network; its numbers mean nothing")

    lists = command("list", commands.listed, "what there is: methods, scenarios, backbones, adapters, suites")
    lists.add_argument("kind", choices=["methods", "scenarios", "backbones", "adapters", "suites", "configs", "launchers"])
    lists.add_argument("--backbone", type=_word, help="with adapters: count trainable parameters on this backbone")
    lists.add_argument("--json", action="store_true", help="as JSON, for programs")

    check = command("check", commands.check, "check the contract of a method or scenario")
    check.add_argument("target", nargs="*", help="names, package.module:Class or path/to/file.py:Class")
    check.add_argument("--all", action="store_true", help="every registered method and scenario")

    compare = command("compare", commands.compare, "tables and a page from records", read)
    compare.add_argument("--html", type=_folder, help="write the self-contained page here")
    compare.add_argument("--export", type=_folder, action="append", default=[], metavar="FILE",
                         help="write the table as FILE.csv, FILE.md or FILE.tex; may be repeated")
    compare.add_argument("--tidy", type=_folder, action="append", default=[], metavar="FILE",
                         help="tidy CSV for other programs: runs.csv, tests.csv or curves.csv in any folder")
    compare.add_argument("--methods", nargs="+", default=[], metavar="NAME", help="these methods alone, in every output")
    compare.add_argument("--columns", nargs="+", default=[], metavar="METRIC", help="these metrics as columns (default: the "
                         "page's); their names are those in run.json")
    compare.add_argument("--overall", action="store_true", help="one table of methods x scenarios with mean ranks instead of a "
                         "table per scenario, here and in --export; --columns says of which metrics")
    compare.add_argument("--images", action="store_true", help="with --html: pictures of images that runs lost, where the data "
                         "are at hand; never embedded otherwise")
    compare.add_argument("--by", choices=["scenario", "fingerprint"], default="scenario",
                         help="one table per scenario (different protocols are refused), or one per protocol fingerprint")
    compare.add_argument("--mix", action="store_true", help="allow runs of different protocols in one table, and say so")

    select = command("select", commands.select, "choose settings without labels, and the gap to the oracle", read,
                     description="What label-free scorers choose among test-time runs: the settings of one method, and all "
                     "methods. Scores come from the records; labels are used for the gap to the oracle only.")
    select.add_argument("--source", type=_word, default="source", metavar="LABEL",
                        help="the model that does not adapt: candidates that collapse beside it are refused (default: source)")

    paper.add_commands(command, stored)
    sharing.add_commands(command, stored)
    tuning.add_commands(command, stored, tracked)

    serve = command("serve", commands.serve, "the page over a folder, updated while runs go on", one)
    serve.add_argument("--host", type=_word, default="127.0.0.1", help="loopback unless told otherwise (with --remote)")
    serve.add_argument("--port", type=_port, default=8765, help="default: 8765; 0 takes a free one")
    serve.add_argument("--remote", action="store_true", help="allow an address that other machines reach: they can read "
                       "every record")

    sync = command("sync", commands.sync, "send to MLflow what it has not yet; or fetch", one, tracked)
    sync.add_argument("--from-mlflow", type=_word, metavar="URI", dest="source",
                      help="import the runs of an MLflow store as records")

    ui = command("ui", commands.ui, "MLflow's own UI on the store", one, tracked)
    ui.add_argument("--host", type=_word, default="127.0.0.1", help="loopback unless told otherwise (with --remote)")
    ui.add_argument("--remote", action="store_true", help="allow an address that other machines reach: they can then read "
                    "and change the store")
    ui.add_argument("--port", type=_port, default=5000, help="default: 5000")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0 well, 1 a run failed or a check did not pass, 2 a mistake to mend, 130 or
    143 where Ctrl-C or SIGTERM ended it."""
    with said():
        return _main(list(sys.argv[1:] if argv is None else argv))


def _main(arguments: list[str]) -> int:
    debug = "--debug" in arguments
    try:
        options, rest = _parser().parse_known_args(arguments)
        if rest and options.command not in ("run", "suite", "verify", "tune"):
            raise UserError(f"cl-bench {options.command} has no option {rest[0]!r}; see `cl-bench {options.command} --help`.")
        with _stoppable():
            code = int(options.act(options, rest) or 0)
            sys.stdout.flush()
            return code
    except UserError as fault:
        if debug:
            raise
        print(f"cl-bench: {_sentence(str(fault))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        ended = isinstance(stop, Terminated) or isinstance(stop.__cause__, Terminated)
        how = str(stop) if isinstance(stop, commands.Stopped) else ""
        print(f"cl-bench: stopped{' by SIGTERM' if ended else ''}{how and f'; {how}'}.", file=sys.stderr)
        return 143 if ended else 130
    except Exception as fault:
        if debug:
            raise
        if no_room(fault):
            print("cl-bench: there is no space left on the disk that is written to: make room and try again.", file=sys.stderr)
            return 2
        print(f"cl-bench: {told(fault)}; --debug shows the way there", file=sys.stderr)
        return 1


def _sentence(text: str) -> str:
    """One line, in which no word goes on for pages: what was typed is quoted as far as it helps."""
    return " ".join(word if len(word) <= 200 else f"{word[:60]}...{word[-20:]}" for word in text.split())


@contextmanager
def _stoppable() -> Iterator[None]:
    """A SIGTERM, as a cluster's scheduler sends it, ends the work like the user's Ctrl-C: recorded, and to be gone on with.
    An exit that a run's own code asks for is a failure, and no end of this program."""
    before = None
    if threading.current_thread() is threading.main_thread():  # only there may handlers be set
        before = signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    except Helped:
        raise
    except SystemExit as left:
        raise RuntimeError(f"the code of a run called sys.exit({left.code!r})") from left
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _terminated(*_: object) -> NoReturn:
    raise Terminated("SIGTERM")


if __name__ == "__main__":
    sys.exit(main())

"""``cl-bench export``, ``import``, ``verify`` and ``leaderboard``: records that leave one machine and reach another."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .commands import given_folders, read_records

__all__ = ["add_commands", "export", "import_", "leaderboard", "verify"]

VERIFY = """\
options after the records: places that a record does not tell (--scenario.root DIR, --backbone.weights FILE), files of code
that were not installed (--method FILE.py:CLASS), and --device, --devices, --strategy, --threads, --workers. Anything else
would be another run.

exit code: 0 every record agrees (in bits, in counts, or within the spread over seeds), 1 one does not, 2 a mistake to mend
"""


def add_commands(command: Callable[..., argparse.ArgumentParser], stored: argparse.ArgumentParser) -> None:
    """The four subcommands, by the function that makes the others."""
    made = command("export", export, "records as one archive to share, without places and names", stored,
                   description="Finished and failed runs as one file. Absolute paths, your user's and your machine's name are "
                   "taken out, and looked for again before the file is written.")
    made.add_argument("folders", nargs="*", type=Path, metavar="DIR", help="run folders, or folders of them (default: runs)")
    made.add_argument("-o", "--out", type=Path, required=True, metavar="FILE.zip", help="the archive")
    made.add_argument("--hide", action="append", default=[], metavar="WORD", help="take this word out, too; may be repeated")
    made.add_argument("--allow", action="append", default=[], metavar="WORD", help="leave this word in although you or your "
                      "machine are called so; may be repeated")
    made.add_argument("--by", default="", metavar="TEXT", help="who submits it, to be shown on a leaderboard")
    made.add_argument("--url", default="", metavar="URL", help="paper or code, https://...")
    made.add_argument("--note", default="", metavar="TEXT", help="anything else to be shown")

    made = command("import", import_, "bring the runs of archives into a folder of records", stored)
    made.add_argument("archives", nargs="+", type=Path, metavar="FILE.zip", help="what cl-bench export wrote")

    made = command("verify", verify, "run submitted records again, and say how far they agree", epilog=VERIFY,
                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("records", nargs="+", type=Path, metavar="RECORD", help="run folders, or archives of runs")
    made.add_argument("--seeds", type=int, default=None, metavar="N", help="further seeds to run for the spread (default: 4)")
    made.add_argument("--report", type=Path, metavar="DIR", help="write what was found there, one file per run, for cl-bench "
                      "leaderboard --verified")
    made.add_argument("--runs", type=Path, metavar="DIR", help="keep the new runs there (default: thrown away)")

    made = command("leaderboard", leaderboard, "static pages from submitted archives")
    made.add_argument("folder", type=Path, metavar="FOLDER", help="archives, in it or below it")
    made.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="where the pages go, index.html first")
    made.add_argument("--verified", type=Path, metavar="DIR", help="reports of cl-bench verify; without them nothing counts as "
                      "verified")
    made.add_argument("--title", default="cl-bench leaderboard", help="what the first page is called")


def export(o: argparse.Namespace, rest: list[str]) -> int:
    """Write an archive."""
    from ..records.archive import export
    from ..records.privacy import names_of_this_machine

    if o.out.suffix != ".zip":
        raise UserError(f"-o {o.out}: an archive's name ends in .zip.")
    if o.url and not o.url.startswith(("https://", "http://")):
        raise UserError(f"--url {o.url}: an address begins with https://.")
    allowed = {word.lower() for word in o.allow}
    names = [n for n in [*names_of_this_machine(), *o.hide] if n.lower() not in allowed]
    runs = read_records(given_folders(o))
    over = [run for run in runs if run.status in ("finished", "failed")]
    for run in runs:
        if run not in over:
            print(f"left out: {run.id} is {run.status}", file=sys.stderr)
    if not over:
        raise UserError("none of these runs is over; there is nothing to share yet.")
    path = export(over, o.out, names, {"by": o.by, "url": o.url, "note": o.note})
    many = "s" if len(over) > 1 else ""
    print(f"archive: {path} ({len(over)} run{many}, {path.stat().st_size / 1024:.0f} KiB)")
    return 0


def import_(o: argparse.Namespace, rest: list[str]) -> int:
    """Bring runs in."""
    from ..records.archive import import_archive

    folders = o.runs or [Path("runs")]
    if len(folders) > 1:
        raise UserError("cl-bench import fills one folder of records; give one --runs.")
    for path in o.archives:
        done = import_archive(_archive(path), folders[0])
        print(f"{path}: {len(done.folders)} imported into {folders[0]}" + (
            f", {len(done.known)} here already" if done.known else ""))
        for note in done.notes:
            print(f"note: {note}", file=sys.stderr)
    return 0


def _archive(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"there is no archive {path}." if not path.exists() else f"{path} is no file; name an archive.")
    return path


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="cl-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def verify(o: argparse.Namespace, rest: list[str]) -> int:
    """Run records again; 1 where one does not agree."""
    from ..records.archive import unpacked
    from ..records.results import load, write_atomically
    from .verification import LEVELS, SEEDS, filled, verify

    seeds = SEEDS if o.seeds is None else o.seeds
    if not 0 <= seeds <= 100:
        raise UserError(f"--seeds {seeds}: give how many further seeds to run, 0 to 100.")
    with _scratch() as scratch:
        given: list[tuple[Any, bool]] = []
        for k, path in enumerate(o.records):
            if path.is_file() and path.suffix == ".zip":
                (inside := scratch / str(k)).mkdir()
                given += [(load(inside / run_id), True) for run_id in unpacked(path, inside).runs]
            else:
                given.append((load(path), False))
        given = [(run, foreign) for run, foreign in given if not (foreign and run.status == "failed")]
        if not given:
            raise UserError("there is no finished run in it to verify.")
        todo = [(run, filled(run.record.get("config") or {}, rest, foreign)) for run, foreign in given]
        agreed = True
        for run, config in todo:
            verdict = verify(run, config, o.runs or scratch / "again", seeds=seeds)
            agreed = agreed and verdict.agrees
            print(f"{run.id}: {LEVELS[verdict.level]}" + "".join(f"\n  {reason}" for reason in verdict.reasons))
            if o.report is not None:
                o.report.mkdir(parents=True, exist_ok=True)
                write_atomically(o.report / f"{run.id}-{verdict.record}.json", json.dumps(verdict.to_json(), indent=1).encode())
    return 0 if agreed else 1


def leaderboard(o: argparse.Namespace, rest: list[str]) -> int:
    """Write pages."""
    from ..compare.site import build

    for folder in (o.folder, *([o.verified] if o.verified else [])):
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}.")
    with _scratch() as scratch:
        site = build(_below(o.folder, "*.zip"), _below(o.verified, "*.json") if o.verified else [], scratch, o.out, o.title)
    for problem in site.problems:
        print(f"left out: {problem}", file=sys.stderr)
    print(f"runs: {site.runs}, archives: {site.archives}, tables: {site.tables}; {o.out / 'index.html'}")
    return 0


def _below(folder: Path, pattern: str) -> Sequence[Path]:
    return sorted(p for p in folder.rglob(pattern) if p.is_file() and not p.is_symlink())

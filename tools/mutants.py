"""Small faults, put into the core one at a time: do the tests that guard the place see each of them?

``make mutants`` copies the tree, checks that the guarding tests pass there, then for every mutant of
``tools/mutants_list.py`` changes one place of the copy, runs the tests that must fail until one does, and puts the place
back. What survives is a place that no test holds. The table goes to ``results/mutants.md``. A mutant whose old text is
not in its file any more is stale, and told. The checkout itself is never edited.

Tests run in children of one process that has imported what they import from others (torch, Lightning, pytest), so that a
mutant costs the seconds of its tests. Verdicts are noted in ``runs/mutants.jsonl`` as they fall; ``--go-on`` takes those
whose mutant, file and tests are the same.

    python tools/mutants.py --jobs 2               all of them
    python tools/mutants.py --go-on                all that no earlier call has judged
    python tools/mutants.py --only matrix          those of one area, or with these words in what they do; no table
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

sys.path.insert(0, str(Path(__file__).resolve().parent))

from mutants_list import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "results" / "mutants.md"
NOTES = ROOT / "runs" / "mutants.jsonl"
LIMIT = 240  # seconds of the tests of one mutant
NAMES = {"cl_bench_methods": "methods", "cl_bench_scenarios": "scenarios", "cl_bench_ops": "cuda_ext"}
OURS = ("cl_bench", "conftest", *NAMES)


@dataclass
class Verdict:
    """What became of a mutant: ``killed``, ``survived``, ``stale``, or ``killed (time)``; and the test that saw it."""

    mutant: Mutant
    state: str
    seen: str = ""
    seconds: float = 0.0

    @property
    def killed(self) -> bool:
        return self.state.startswith("killed")


def copy_of_the_tree(into: Path) -> Path:
    """A copy of what git knows, compiled, importable under the packages' installed names."""
    argv = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, into / name)
    for package, folder in NAMES.items():
        (into / package).symlink_to(into / folder, target_is_directory=True)
    if not (into / "cl_bench" / "configs").exists():
        (into / "cl_bench" / "configs").symlink_to(into / "configs", target_is_directory=True)
    subprocess.run([sys.executable, "-m", "compileall", "-q", "cl_bench", *NAMES.values()], cwd=into, check=True)
    return into


def imported(tree: Path, tests: Sequence[str]) -> list[str]:
    """The modules that ``tests`` import and that no mutant changes: children find them imported."""
    files = list(dict.fromkeys(Path(t.partition("::")[0]).stem for t in tests))
    code = (f"import importlib, sys\nsys.path[:0] = [{str(tree)!r}, {str(tree / 'tests')!r}]\nimport pytest\n"
            f"for name in {files!r}:\n"
            "    try:\n        importlib.import_module(name)\n"
            "    except BaseException as fault:\n        assert type(fault).__name__ == 'Skipped', fault\n"
            "made = {n: getattr(m, '__spec__', None) for n, m in list(sys.modules.items()) if n.count('.') < 3}\n"
            "print(*(n for n, s in made.items() if s is not None and s.origin not in (None, 'built-in', 'frozen')))")
    ran = subprocess.run([sys.executable, "-B", "-c", code], cwd=tree, check=True, capture_output=True, text=True)
    beside = {p.stem for p in (tree / "tests").glob("*.py")}
    return [n for n in ran.stdout.split() if n.partition(".")[0] not in {*OURS, *beside, "__main__", "mutants", "mutants_list"}]


def _child(tree: str, tests: Sequence[str], said: str) -> None:
    """In a process of its own, the leader of its group: run pytest in ``tree`` and write its words to ``said``."""
    os.setsid()
    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(tree)
    os.environ.update(PYTHONPATH=tree, OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1",
                      CL_BENCH_SHARED=os.environ.get("CL_BENCH_SHARED", str(ROOT.parent / "shared")))
    sys.dont_write_bytecode = True
    sys.path.insert(0, tree)
    import pytest

    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "--tb=line", *tests])
    sys.stdout.flush()
    os._exit(int(code))


def tests_fail(tree: Path, tests: Sequence[str], limit: float = LIMIT) -> tuple[bool, str, float]:
    """(whether one fails, which or how, seconds)."""
    started = time.perf_counter()
    context = multiprocessing.get_context("forkserver")
    said = tree.parent / f"{tree.name}.said"
    child = context.Process(target=_child, args=(str(tree), list(tests), str(said)))
    child.start()
    child.join(limit)
    late = child.is_alive()
    assert child.pid is not None
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # and what the tests left running
    child.join()
    seconds = time.perf_counter() - started
    if late:
        return True, "out of time", seconds
    lines = said.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing was said"]
    seen = next((line.split(" ", 1)[1].partition(" - ")[0] for line in lines if line.startswith(("FAILED ", "ERROR "))),
                lines[-1])
    gone = any(line.startswith("ERROR: not found") for line in lines)  # a test of another name now has seen nothing
    return child.exitcode != 0 and not gone, seen.removeprefix("tests/"), seconds


@contextmanager
def changed(tree: Path, mutant: Mutant) -> Iterator[bool]:
    """The mutant's file with its change; False where the place is not there exactly once."""
    file = tree / mutant.file
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    if text.count(mutant.old) != 1:
        yield False
        return
    was = file.stat()
    file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns + 5_000_000_000))  # no compiled file is taken for it
    try:
        yield True
    finally:
        file.write_text(text, encoding="utf-8")
        os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))


def judge(tree: Path, mutant: Mutant, first: str = "") -> Verdict:
    """Try one mutant in a copy of the tree; ``first`` is a test that saw it before."""
    with changed(tree, mutant) as there:
        if not there:
            return Verdict(mutant, "stale")
        failed, seen, seconds = False, "", 0.0
        for tests in ([first], mutant.tests) if first else (mutant.tests,):
            failed, seen, more = tests_fail(tree, tests)
            seconds += more
            if failed:
                break
    state = "survived" if not failed else "killed (time)" if seen == "out of time" else "killed"
    return Verdict(mutant, state, seen, seconds)


def key_of(mutant: Mutant) -> str:
    """What a verdict depends on: the mutant, the file that it changes, and the files of its tests."""
    files = [mutant.file, *(t.partition("::")[0] for t in mutant.tests)]
    text = [(ROOT / f).read_text(encoding="utf-8") for f in files if (ROOT / f).is_file()]
    return hashlib.sha256(repr((mutant, text)).encode()).hexdigest()[:20]


def noted() -> dict[str, tuple[str, str, float]]:
    """Verdicts of earlier calls by :func:`key_of`."""
    if not NOTES.is_file():
        return {}
    lines = (json.loads(line) for line in NOTES.read_text(encoding="utf-8").splitlines())
    return {line["key"]: (line["state"], line["seen"], line["seconds"]) for line in lines}


def seen_before() -> dict[tuple[str, str], str]:
    """What the committed table says who saw a mutant, as a file's test; by area and description."""
    text = TABLE.read_text(encoding="utf-8") if TABLE.is_file() else ""
    rows = re.findall(r"^\| (\w+) \| (.*) \| `.*` \| `(.*)` \|$", text, re.M)
    return {(area, what): f"tests/{seen}" for area, what, seen in rows}


def table(verdicts: Sequence[Verdict]) -> str:
    """``results/mutants.md``."""
    killed = sum(v.killed for v in verdicts)
    lines = [
        "Made by `make mutants`.", "",
        "# Small faults in the core, and the tests that see them", "",
        f"{killed} of {len(verdicts)} mutants are killed: each is one change of one place, beside it the test that saw it.",
        "", "| area | fault | file | seen by |", "|---|---|---|---|",
    ]  # fmt: skip
    for v in verdicts:
        seen = f"`{v.seen}`" if v.state == "killed" else f"**{v.state}**"
        lines.append(f"| {v.mutant.area} | {v.mutant.what} | `{v.mutant.file}` | {seen} |")
    return "\n".join(lines) + "\n"


def judge_all(chosen: Sequence[Mutant], jobs: int, known: dict[str, tuple[str, str, float]], sure: bool = False
              ) -> list[Verdict] | None:
    """Every mutant's verdict, known ones taken as they are; None where the tests fail without a mutant, which is tried
    unless it is ``sure``."""
    left = [m for m in chosen if key_of(m) not in known]
    before, trees = seen_before(), Queue[Path]()
    NOTES.parent.mkdir(exist_ok=True)

    def one(mutant: Mutant) -> Verdict:
        if (key := key_of(mutant)) in known:
            return Verdict(mutant, *known[key])
        tree = trees.get()
        try:
            verdict = judge(tree, mutant, before.get((mutant.area, mutant.what), ""))
        finally:
            trees.put(tree)
        with NOTES.open("a", encoding="utf-8") as notes:
            notes.write(json.dumps({"key": key, "state": verdict.state, "seen": verdict.seen, "seconds": verdict.seconds,
                                    "what": mutant.what}) + "\n")
        print(f"{verdict.state:14} {mutant.area:12} {mutant.what}  [{verdict.seen}, {verdict.seconds:.0f} s]", flush=True)
        return verdict

    with tempfile.TemporaryDirectory(prefix="cl-bench-mutants-") as folder:
        for k in range(jobs if left else 0):
            trees.put(copy_of_the_tree(Path(folder) / str(k)))
        if left:
            tree = trees.get()
            guards = list(dict.fromkeys(t for m in left for t in m.tests))
            multiprocessing.get_context("forkserver").set_forkserver_preload(imported(tree, guards))
            failed, seen, seconds = (False, "", 0.0) if sure else tests_fail(tree, guards, 900)
            trees.put(tree)
            print(f"without a mutant: {'FAILED ' + seen if failed else 'all pass'} ({seconds:.0f} s)", flush=True)
            if failed:
                return None
        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(one, chosen))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 where a mutant survives or is stale, or where the tests fail without one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=1, help="copies of the tree that are tested at the same time")
    parser.add_argument("--only", default="", help="an area, or words of a mutant's description")
    parser.add_argument("--go-on", action="store_true", help="take the verdicts of earlier calls that still hold")
    parser.add_argument("--sure", action="store_true", help="the tests are known to pass without a mutant: do not try")
    given = parser.parse_args(argv)
    verdicts = judge_all([m for m in MUTANTS if given.only in m.area or given.only in m.what], given.jobs,
                         noted() if given.go_on else {}, given.sure)
    if verdicts is None:
        return 1
    if not given.only:
        TABLE.write_text(table(verdicts), encoding="utf-8")
    bad = [v for v in verdicts if not v.killed]
    for v in bad:
        print(f"{v.state}: {v.mutant.area}: {v.mutant.what}")
    print(f"{len(verdicts) - len(bad)} of {len(verdicts)} killed")
    return 1 if bad else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())

"""Small faults, put into the core one at a time: does the test file that guards the place see each of them?

``make mutants`` copies the tree, checks that the guarding tests pass there, then for every mutant of
``tools/mutants_list.py`` changes one place, runs the tests that must fail, and puts the place back. What survives is a
place that no test holds. The table goes to ``results/mutants.md``. A mutant whose old text is not in its file any more
is stale, and told.

    python tools/mutants.py --jobs 2               all of them
    python tools/mutants.py --only matrix          those of one area, no table
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

sys.path.insert(0, str(Path(__file__).resolve().parent))

from mutants_list import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "results" / "mutants.md"
LIMIT = 300  # seconds of one run of tests
NAMES = {"cl_bench_methods": "methods", "cl_bench_scenarios": "scenarios", "cl_bench_ops": "cuda_ext"}


@dataclass
class Verdict:
    """What became of a mutant: ``killed``, ``survived``, ``stale``, or ``killed (time)``; and the test that saw it."""

    mutant: Mutant
    state: str
    seen: str = ""
    seconds: float = 0.0


def copy_of_the_tree(into: Path) -> Path:
    """A copy of what git knows, importable under the packages' installed names."""
    argv = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, into / name)
    for package, folder in NAMES.items():
        (into / package).symlink_to(into / folder, target_is_directory=True)
    if not (into / "cl_bench" / "configs").exists():
        (into / "cl_bench" / "configs").symlink_to(into / "configs", target_is_directory=True)
    return into


def tests_fail(tree: Path, tests: Sequence[str]) -> tuple[bool, str, float]:
    """(whether one fails, which or how, seconds)."""
    started = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
                   "CL_BENCH_SHARED": os.environ.get("CL_BENCH_SHARED", str(ROOT.parent / "shared"))}
    argv = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", "--no-header", *tests]
    try:
        ran = subprocess.run(argv, cwd=tree, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return True, "out of time", time.perf_counter() - started
    lines = ran.stdout.strip().splitlines() or [ran.stderr[-200:]]
    seen = next((line.split(" ")[1].partition("::")[2] for line in lines if line.startswith(("FAILED ", "ERROR "))), lines[-1])
    return ran.returncode != 0, seen, time.perf_counter() - started


@contextmanager
def changed(tree: Path, mutant: Mutant) -> Iterator[bool]:
    """The mutant's file with its change; False where the place is not there exactly once."""
    file = tree / mutant.file
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    if text.count(mutant.old) != 1:
        yield False
        return
    file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        yield True
    finally:
        file.write_text(text, encoding="utf-8")


def judge(trees: Queue[Path], mutant: Mutant) -> Verdict:
    """Try one mutant in a free copy of the tree."""
    tree = trees.get()
    try:
        with changed(tree, mutant) as there:
            if not there:
                return Verdict(mutant, "stale")
            failed, seen, seconds = tests_fail(tree, mutant.tests)
    finally:
        trees.put(tree)
    state = "survived" if not failed else "killed (time)" if seen == "out of time" else "killed"
    verdict = Verdict(mutant, state, seen, seconds)
    print(f"{verdict.state:14} {mutant.area:12} {mutant.what}  [{seen}, {seconds:.0f} s]", flush=True)
    return verdict


def table(verdicts: Sequence[Verdict]) -> str:
    """``results/mutants.md``."""
    killed = sum(v.state.startswith("killed") for v in verdicts)
    lines = [
        "Made by `make mutants`.", "",
        "# Small faults in the core, and the tests that see them", "",
        f"{killed} of {len(verdicts)} mutants are killed: each is one change of one place, beside it the test that saw it.",
        "", "| area | fault | file | seen by |", "|---|---|---|---|",
    ]  # fmt: skip
    for v in verdicts:
        where = v.mutant.tests[0].partition("::")[0].removeprefix("tests/")
        seen = f"`{where}::{v.seen.partition('[')[0]}`" if v.state == "killed" else f"**{v.state}**"
        lines.append(f"| {v.mutant.area} | {v.mutant.what} | `{v.mutant.file}` | {seen} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 where a mutant survives or is stale, or where the tests fail without one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=1, help="copies of the tree that are tested at the same time")
    parser.add_argument("--only", default="", help="an area, or words of a mutant's description")
    given = parser.parse_args(argv)
    chosen = [m for m in MUTANTS if given.only in m.area or given.only in m.what]
    trees: Queue[Path] = Queue()
    with tempfile.TemporaryDirectory(prefix="cl-bench-mutants-") as folder:
        for k in range(given.jobs):
            trees.put(copy_of_the_tree(Path(folder) / str(k)))
        guards = sorted({t for m in chosen for t in m.tests})
        tree = trees.get()
        failed, seen, seconds = tests_fail(tree, guards)
        trees.put(tree)
        print(f"without a mutant: {'FAILED ' + seen if failed else 'all pass'} ({seconds:.0f} s)", flush=True)
        if failed:
            return 1
        with ThreadPoolExecutor(given.jobs) as pool:
            verdicts = list(pool.map(lambda m: judge(trees, m), chosen))
    if not given.only:
        TABLE.write_text(table(verdicts), encoding="utf-8")
    bad = [v for v in verdicts if not v.state.startswith("killed")]
    print(f"{len(verdicts) - len(bad)} of {len(verdicts)} killed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

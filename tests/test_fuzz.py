"""Spoilt command lines, configs and suites: each ends as a run that is whole, or as one sentence and exit code 2.

``pytest tests/test_fuzz.py --fuzz-cases 2000`` runs more of them, ``--fuzz-seed`` others, ``--fuzz-case N`` one again.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from fuzz_cases import NASTY, Case, case, few_digits, options
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_bench.command.arguments import merged, options_of
from cl_bench.command.cli import main
from cl_bench.command.files import yaml_value
from cl_bench.command.parts import NESTED, ROOTS, read_part, same_class
from cl_bench.command.typed import Reader, Word
from cl_bench.errors import UserError
from cl_bench.registry import GROUPS, entries

CHUNK = 25  # cases of one test
LIMIT = 120  # seconds of one case, on a busy machine


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "numbers" in metafunc.fixturenames:
        config = metafunc.config
        one, count = config.getoption("--fuzz-case"), config.getoption("--fuzz-cases")
        chunks = [range(k, min(k + CHUNK, count)) for k in range(0, count, CHUNK)] if one is None else [range(one, one + 1)]
        metafunc.parametrize("numbers", chunks, ids=lambda r: f"{r.start}-{r.stop - 1}")


@pytest.fixture
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    few_digits(monkeypatch)


class TooSlow(BaseException):
    """A case took longer than it may. No Exception, so that nobody takes it for a failed run."""


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Stop what takes longer; where even that does not help, end the process with a traceback of every thread."""
    def stop(signum: int, frame: FrameType | None) -> None:
        raise TooSlow(f"more than {seconds} s")

    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGALRM, stop) if main_thread else None
    faulthandler.dump_traceback_later(2 * seconds, exit=True, file=sys.__stderr__)
    try:
        if main_thread:
            signal.alarm(seconds)
        yield
    finally:
        if main_thread:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


def line_of(spoilt: Case, home: Path) -> list[str]:
    argv = spoilt.words(home / "runs", home / "c.yaml")
    return [*argv, "--runs", str(home / "runs"), "--tracking", "none"] if argv[:1] in (["run"], ["suite"]) else argv


def ended(spoilt: Case, home: Path) -> tuple[Any, str]:
    """Exit code and what was said of one case in this process."""
    argv, err = line_of(spoilt, home), io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try:
            with limited(LIMIT):
                return main(argv), err.getvalue()
        except SystemExit as left:
            return f"SystemExit({left.code})", err.getvalue()
        except BaseException as fault:
            return f"{type(fault).__name__}: {fault}", err.getvalue()


def wrong(spoilt: Case, code: Any, err: str, runs: Path) -> str | None:
    """What is wrong with how a case ended, or None."""
    records = [json.loads(file.read_text()) for file in runs.glob("*/run.json")] if runs.is_dir() else []
    states = sorted(r["status"] for r in records)
    if code in (0, "SystemExit(0)"):
        halves = [f.name for f in runs.iterdir() if f.is_dir() and f.name[0] != "." and not (f / "DONE").is_file()] if (
            runs.is_dir()) else []
        return f"runs are {states}, without DONE {halves}" if set(states) - {"finished"} or halves else None
    *before, last = err.splitlines() or [""]
    if "Traceback" in err or re.search(r"\b[A-Z]\w*(Error|Exception|Warning)\b", err.replace("UserError", "")):
        return "a traceback or the name of an exception"
    if code == 1 and spoilt.argv[:1] == ["check"]:
        return None  # what was checked has not passed
    if code == 1 and spoilt.argv[:1] == ["suite"] and last.startswith("failed: "):
        return None if set(states) <= {"failed", "finished"} else f"runs are {states}"
    if code != 2 or not last.startswith("cl-bench: ") or last[-1] not in ".?":
        return "neither a run nor one sentence with exit code 2"
    if more := [line for line in before if not line.startswith("left out: ")]:
        return f"more than one sentence: {more}"
    if len(last) > 1000:
        return f"a sentence of {len(last)} characters"
    if set(states) - {"failed"} or (runs.is_dir() and not records and any(runs.iterdir())):
        return f"runs are {states}, and there is {sorted(f.name for f in runs.iterdir())}"
    return None


def test_every_case_ends_well(numbers: range, small_data: None, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    bad = []
    for number in numbers:
        spoilt = case(number, pytestconfig.getoption("--fuzz-seed"))
        home = tmp_path / str(number)
        home.mkdir()
        code, err = ended(spoilt, home)
        if (why := wrong(spoilt, code, err, home / "runs")) is not None:
            bad.append(f"{spoilt}\n-> {code}, {why}\n{err[-1500:]}\nagain: pytest {__file__} --fuzz-case {number} "
                       f"--fuzz-seed {pytestconfig.getoption('--fuzz-seed')}")
        shutil.rmtree(home)
    assert not bad, "\n\n".join(bad)


def test_some_in_processes_of_their_own(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """Where a signal, a hang in native code or an exit hook would show."""
    count, seed = max(2, pytestconfig.getoption("--fuzz-cases") // 100), pytestconfig.getoption("--fuzz-seed")
    drawn = (case(10_000 + k, seed) for k in range(20 * count))
    for spoilt in [spoilt for spoilt in drawn if spoilt.kind in ("line", "file", "settings")][:count]:
        home = tmp_path / str(spoilt.number)
        home.mkdir()
        ran = subprocess.run([sys.executable, "-m", "cl_bench.cli", *_passable(line_of(spoilt, home))], capture_output=True,
                             text=True, timeout=10 * LIMIT)
        why = wrong(spoilt, ran.returncode, ran.stderr, home / "runs")
        assert why is None, f"{spoilt}\n-> {ran.returncode}, {why}\n{ran.stderr[-1500:]}"


def _passable(argv: list[str]) -> list[str]:
    """A system's command line cannot hold the character NUL, nor half a character."""
    return [word.replace("\0", "").encode("utf-8", "replace").decode() for word in argv]


def test_cases_are_the_same_every_time_and_many_kinds() -> None:
    assert [str(case(k)) for k in range(50)] == [str(case(k)) for k in range(50)]
    assert str(case(3, seed=1)) != str(case(3, seed=0))
    assert {case(k).kind for k in range(100)} == {"value", "settings", "line", "file", "text", "suite", "command", "valid"}


# ------------------------------------------------------------------ the parts that read, by hypothesis
QUICK = settings(max_examples=200, deadline=None, derandomize=True, database=None)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(NASTY),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6)
SYNTAX = st.text(st.sampled_from(list("ab1 .:,-[]{}&*!|>'\"#\n\t%?<~0")), max_size=60)
HINTS = [(f"{group}.{name}.{option}", hint) for group in ("methods", "scenarios", "backbones")
         for name in entries(GROUPS[group]) for option, hint in options(group, name).items()]
TOKENS = ("--scenario", "--method", "--method.rank", "--scenario.of", "--scenario.of.of", "--seed", "--x.y.z",
          "--compute.threads", "--device", "--method.init_args.lr", "--=", "--.", "-", "8", "ncm", "", "null",
          "--scenario.of.seed=3", "--method.class_path", "[1]", "digits_c")


def one_sentence(fault: UserError) -> None:
    assert "\n" not in str(fault) and str(fault)[-1] in ".?" and len(str(fault)) < 7000, str(fault)[:300]


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and plain(v) for k, v in value.items())
    return all(map(plain, value)) if isinstance(value, list) else value is None or isinstance(value, (str, bool, int, float))


@QUICK
@given(SYNTAX | st.text(max_size=60))
def test_any_text_is_a_plain_value_or_a_sentence(text: str) -> None:
    try:
        assert plain(yaml_value(text, "it"))
    except UserError as fault:
        one_sentence(fault)


@QUICK
@given(st.sampled_from(HINTS), PLAIN | st.text(max_size=20).map(Word) | SYNTAX.map(Word))
def test_any_value_for_any_option_is_read_or_refused(where: tuple[str, Any], value: Any) -> None:
    name, hint = where
    try:
        found = Reader(read_part).read(name, hint, value)
    except UserError as fault:
        one_sentence(fault)
    else:
        json.dumps(found, allow_nan=False).encode("utf-8")
        assert Reader(read_part).read(name, hint, found) == found, "what was read reads as itself"


@QUICK
@given(st.lists(st.sampled_from(TOKENS) | st.text(max_size=6), max_size=8),
       st.dictionaries(st.sampled_from(["scenario", "method", "seed", "compute", "x"]), PLAIN, max_size=3))
def test_any_words_over_any_config_are_a_mapping_or_a_sentence(argv: list[str], base: dict[str, Any]) -> None:
    try:
        assert isinstance(merged(base, options_of(argv, {"method": "methods"}), NESTED, ROOTS, same_class), dict)
    except UserError as fault:
        one_sentence(fault)

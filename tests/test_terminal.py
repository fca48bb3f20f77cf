"""What the terminal says: progress in a pipe, results, the matrix of a run, marks in ASCII, help of every part."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import records
from rich.console import Console

from cl_bench.command import progress
from cl_bench.command.cli import main
from cl_bench.command.part_help import WIDTH, part_help
from cl_bench.command.streams import ASCII
from cl_bench.compare.matrix_text import matrix_text
from cl_bench.compare.terminal import trimmed
from cl_bench.numbers.matrix import AccuracyMatrix
from cl_bench.records.results import load_all
from cl_bench.registry import GROUPS, entries, find


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _listening(bar, file: io.StringIO, clock: Clock):
    bar.console, bar.clock, bar.began = Console(file=file, width=80), clock, clock.now
    return bar


def test_a_pipe_gets_a_line_per_experience_with_accuracy_elapsed_and_time_left() -> None:
    clock, out = Clock(), io.StringIO()
    bar = _listening(progress.RunProgress(), out, clock)
    bar("start", {"scenario": "split_digits", "method": "lora", "steps": 5})
    for step in range(5):
        clock.now += 30
        bar("experience", {"name": f"classes {step}", "step": step, "accuracy": 90.25 - step})
    lines = out.getvalue().splitlines()
    assert lines[0] == "split_digits lora: 5 steps"
    assert lines[1] == "[1/5] classes 0: accuracy 90.2 %, 30 s, about 2 min left"
    assert lines[4] == "[4/5] classes 3: accuracy 87.2 %, 2 min, about 30 s left"
    assert lines[5] == "[5/5] classes 4: accuracy 86.2 %, 2 min"


def test_a_resumed_run_reckons_from_where_it_began() -> None:
    clock, out = Clock(), io.StringIO()
    bar = _listening(progress.RunProgress(), out, clock)
    bar("start", {"scenario": "s", "method": "m", "steps": 10})
    clock.now += 10
    bar("domain", {"name": "fog", "step": 7, "error": 12.5})
    assert out.getvalue().splitlines()[-1] == "[8/10] fog: error 12.5 %, 10 s, about 20 s left"


def test_a_suite_says_the_result_of_each_run_and_what_was_skipped(tmp_path) -> None:
    folder = records.write_learner(tmp_path, "lora", 0)
    clock, out = Clock(), io.StringIO()
    bar = _listening(progress.SuiteProgress("quick", 4), out, clock)
    bar("skip", {"label": "split_digits ncm seed 0", "message": "skipped, finished earlier"})
    bar("start", {"label": "split_digits lora seed 0"})
    bar("start", {"label": "split_digits osft seed 0"})
    clock.now += 20
    bar("finish", {"label": "split_digits lora seed 0", "message": None, "folder": str(folder)})
    bar("error", {"label": "split_digits osft seed 0", "message": "out of memory"})
    from cl_bench.records.results import load

    metrics = load(folder).metrics
    lines = out.getvalue().splitlines()
    assert lines[0] == "[1/4] split_digits ncm seed 0: skipped, finished earlier"
    assert lines[1] == (f"[2/4] split_digits lora seed 0: average accuracy {metrics['average_accuracy']:.2f} %, forgetting "
                        f"{metrics['forgetting']:.2f} points, 8 s (1 running, 1 left, 1 skipped, ETA 40 s)")
    assert lines[2] == "failed split_digits osft seed 0: out of memory"


def test_the_matrix_of_a_run_fits_the_terminal() -> None:
    matrix = AccuracyMatrix.from_rates([[90, np.nan, np.nan], [80.25, 70, np.nan], [50, 60, 70]], size=400)
    lines = matrix_text(matrix, 80).splitlines()
    assert lines[0].startswith("Accuracy (%)") and lines[1].split() == ["1", "2", "3"]
    assert lines[3].split()[-3:] == ["80.2", "70.0", "–"] and lines[4].split()[-3:] == ["50.0", "60.0", "70.0"]
    wide = AccuracyMatrix.from_rates(np.tril(np.full((14, 14), 50.0)), size=2)
    assert max(map(len, matrix_text(wide, 80).splitlines())) <= 80 and " 50" in matrix_text(wide, 80)
    assert "wider than 30 columns" in matrix_text(wide, 30)
    assert matrix_text(AccuracyMatrix.empty((), ()), 80) == ""


def test_marks_stay_distinct_where_there_is_only_ascii(tmp_path, monkeypatch) -> None:
    records.write_suite(tmp_path, seeds=2, extra=False)
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["compare", str(tmp_path)]) == 0
    out.flush()
    text = raw.getvalue().decode("ascii")
    assert "* best mean; o not distinguishable" in text and ". too few pairs to tell; + a bound" in text
    assert re.search(r"^\* +osft", text, re.M) and re.search(r"^\+ +joint", text, re.M) and "+-" in text and "?" not in text
    assert len({ASCII[mark] for mark in "●○◌†"}) == 4


@pytest.mark.parametrize("argv", [["list", "methods"], ["list", "scenarios"], ["list", "adapters"], ["list", "suites"]])
def test_lists_in_a_pipe_are_one_line_each_without_trailing_blanks(argv, capsys) -> None:
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line != line.rstrip()]
    if argv[1] in GROUPS:
        names = {line.split()[0] for line in lines[1:-1]}
        assert set(entries(GROUPS[argv[1]])) <= names


def test_tables_in_a_pipe_are_one_line_each_without_trailing_blanks(tmp_path, capsys) -> None:
    records.write_suite(tmp_path, seeds=2)
    for argv in (["compare", str(tmp_path)], ["compare", str(tmp_path), "--overall"], ["select", str(tmp_path)]):
        assert main(argv) == 0
        lines = capsys.readouterr().out.splitlines()
        assert not [line for line in lines if line != line.rstrip()]
    assert main(["compare", str(tmp_path)]) == 0
    found = [line for line in capsys.readouterr().out.splitlines() if " codyra " in line]
    assert len(found) == 2 and all("±" in line and line.split()[-1] for line in found)


def test_a_terminal_of_80_columns_holds_lists_and_tables(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    records.write_suite(tmp_path, seeds=2)
    monkeypatch.setattr(Console, "is_terminal", property(lambda self: True))
    for argv in (["compare", str(tmp_path)], ["list", "methods"], ["list", "scenarios"], ["list", "adapters"]):
        assert main(argv) == 0
        text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
        assert max(map(len, text.splitlines())) <= 80, argv
        assert "…" not in text


def test_a_table_for_a_pipe_is_trimmed() -> None:
    from rich.table import Table

    table = Table("a", "b", box=None)
    table.add_row("x", "")
    out = Console(file=io.StringIO(), width=40)
    trimmed(out, table)
    assert [line == line.rstrip() for line in out.file.getvalue().splitlines()] == [True, True]


def _parts() -> list[tuple[str, str]]:
    return [(root, e.name) for root in ("method", "scenario", "backbone") for e in entries(GROUPS[f"{root}s"]).values()
            if e.distribution == "cl-bench"]


@pytest.mark.parametrize("root", ["method", "scenario", "backbone"])
def test_help_of_every_part_is_plain_whole_and_80_wide(root) -> None:
    for kind, name in _parts():
        if kind != root:
            continue
        try:
            target = find(GROUPS[f"{root}s"], name)
        except Exception as fault:  # an optional package that is not installed
            assert "install" in str(fault), (name, fault)
            continue
        text = part_help(root, name, target)
        lines = text.splitlines()
        assert lines[0].startswith("usage: cl-bench run ") and f"--{root} {name}" in lines[0]
        assert not re.search(r"``|:\w+:`|(?m:^\s*\.\. )", text), name
        loose = [line for line in lines if len(line) > WIDTH and len(line.split()) > 3 and not line.startswith("usage")]
        assert not loose, (name, loose)
        for p in inspect.signature(target).parameters.values():
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) or (p.name == "backbone" and root == "method"):
                continue
            at = next(k for k, line in enumerate(lines) if line.startswith(f"  --{root}.{p.name} "))
            explained = lines[at + 1].strip()
            bare = re.match(r"see the paper|(int|float|str|bool|a list|one of)\b", explained.rpartition(";")[0] or explained)
            assert not bare, (name, p.name, explained)
        if root == "method":
            assert "paper: " in text, name
        if getattr(target, "layout", ""):
            assert "folders: root is a folder that holds" in " ".join(text.split()), name


def test_a_stopped_suite_leaves_its_page_and_says_how_to_go_on(tmp_path, monkeypatch, capsys) -> None:
    from cl_bench.command import sweep

    runs = tmp_path / "runs"

    def stopped(suite, folder: Path, **_: object):
        for method in ("lora", "osft"):
            records.write_learner(folder, method, 0, suite=suite.name)
        records.write_learner(folder, "ncm", 0, suite="another")
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "run_suite", stopped)
    assert main(["suite", "quickstart", "--runs", str(runs), "--tracking", "none"]) == 130
    said = capsys.readouterr()
    assert "the same command runs what has not finished" in said.err and "2 runs that finished" in said.err
    page = (runs / "quickstart.html").read_text()
    assert '"lora"' in page and '"osft"' in page and '"ncm"' not in page.split('id="data"')[1].split("</script>")[0]


@pytest.fixture
def unread(monkeypatch):
    """Standard output and error are a pipe whose reader has left, as after `cl-bench ... 2>&1 | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as out:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", out)
        yield
        monkeypatch.undo()


@pytest.mark.parametrize("words", ["list methods", "compare {}", "compare {} --overall", "--help"])
def test_a_reader_who_leaves_is_no_fault(words, tmp_path, unread) -> None:
    for seed in range(2):
        records.write_learner(tmp_path, "lora", seed)
        records.write_learner(tmp_path, "lora", seed, scenario="other")
    with contextlib.suppress(SystemExit):
        assert main(words.format(tmp_path).split()) == 0


def test_a_run_goes_on_when_nobody_reads_its_progress(tmp_path, unread) -> None:
    argv = ["--scenario", "split_digits", "--scenario.per_class", "10", "--method", "ncm", "--tracking", "none"]
    assert main(["run", *argv, "--runs", str(tmp_path)]) == 0
    assert load_all(tmp_path)[0].status == "finished"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is always full")
def test_output_to_a_full_disk_is_one_sentence(tmp_path, monkeypatch, capsys) -> None:
    records.write_learner(tmp_path, "lora", 0)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["compare", str(tmp_path)]) == 2
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
    assert "no space left" in capsys.readouterr().err

"""Grids: ranges, lists and log ranges; every cell asked before the first run; what is to come told before it starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cl_bench.command.cli import main
from cl_bench.command.estimate import Expected, duration
from cl_bench.command.grid import values_of
from cl_bench.command.progress import SuiteProgress
from cl_bench.command.suites import read_suite
from cl_bench.errors import UserError
from cl_bench.records.results import load_all

DIGITS = "{class_path: split_digits, init_args: {per_class: 4, increment: 5}}"
NONE = ["--tracking", "none", "--jobs", "1"]


@pytest.mark.parametrize(("text", "values"), [
    ("4,8,16", ["4", "8", "16"]), ("0..4", ["0", "1", "2", "3", "4"]), ("0..10:5,20", ["0", "5", "10", "20"]),
    ("0..1:0.25", ["0", "0.25", "0.5", "0.75", "1"]), ("0.1..0.3:0.1", ["0.1", "0.2", "0.3"]), ("-1..1", ["-1", "0", "1"]),
    ("1e-4..1e-1:log4", ["0.0001", "0.001", "0.01", "0.1"]), ("4..64:log5", ["4", "8", "16", "32", "64"]),
    ("0..1:lin5", ["0", "0.25", "0.5", "0.75", "1"]), ("[a,b],[c]", ["[a,b]", "[c]"]), ("../data", ["../data"]),
    ("true,false", ["true", "false"]), ("'a,b',c", ["'a,b'", "c"])])
def test_what_the_words_of_a_grid_stand_for(text: str, values: list[str]) -> None:
    assert values_of("it", text) == values


def test_a_list_of_a_file_keeps_its_values_and_may_hold_ranges() -> None:
    assert values_of("it", [4, 0.5, None, [1, 2]]) == [4, 0.5, None, [1, 2]]
    assert values_of("it", ["0..2", 7]) == ["0", "1", "2", 7]


@pytest.mark.parametrize(("text", "said"), [
    ("", "empty value"), ("4,,8", "empty value"), ("4..1", "from the smaller to the larger"), ("0.1..0.5", "needs a step"),
    ("0..1:0", "above 0"), ("0..1:2", "fit into the range"), ("0..1:log3", "begin above 0"), ("1..9:log1", "at least two"),
    ("1..9:lag3", "write a step"), ("1,2,1", "holds 1 twice"), ("0..1e9:1", "more than 100,000"), ([], "is empty"),
    ({"a": 1}, "list values"), (None, "list values"), ("1..1e999", "finite")])
def test_values_that_are_none(text: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        values_of("the grid's lr", text)


def written(home: Path, text: str) -> Path:
    (home / "s.yaml").write_text(text)
    return home / "s.yaml"


def test_every_cell_is_a_run_and_rows_and_the_command_line_win(tmp_path: Path) -> None:
    file = written(tmp_path, f"""
seeds: [5]
grid: {{method.rank: [4, 8], compute.precision: [32-true, bf16-mixed]}}
runs:
  - {{scenario: {DIGITS}, methods: [codyra, lora]}}
  - {{scenario: {DIGITS}, methods: [olora], grid: {{method.rank: 2..3}}}}
""")
    jobs = read_suite(file).jobs
    name = "split_digits(per_class=4, increment=5)"
    assert [j.label for j in jobs][:2] == [f"{name} codyra(rank=4) seed 5 [compute.precision={p}]"
                                           for p in ("32-true", "bf16-mixed")]
    assert len(jobs) == 2 * 4 + 4 and [j.label for j in jobs][-1].startswith(f"{name} olora(rank=3) seed 5")
    given = read_suite(file, {"method.rank": "16", "seed": "0..2"}).jobs
    assert len(given) == 3 * 2 * 3 and {j.config["seed"] for j in given} == {0, 1, 2}, "seeds of a grid are the seeds"
    assert {str(j.config["method"]["init_args"]["rank"]) for j in given} == {"16"}
    assert read_suite(file).swept == ("method.rank", "compute.precision")


def test_seeds_and_orders_may_be_ranges(tmp_path: Path) -> None:
    jobs = read_suite(written(tmp_path, f"seeds: 0..2\norders: 3..4\nruns: [{{scenario: {DIGITS}, methods: [ncm]}}]\n")).jobs
    assert [(j.config["seed"], j.config["scenario"]["init_args"]["order"]) for j in jobs] == [
        (0, 3), (1, 3), (2, 3), (0, 4), (1, 4), (2, 4)]


def mistake(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("cl-bench: "), err
    return err


@pytest.mark.parametrize(("words", "said"), [
    (["--grid", "method.epochs=1,zero"], r"finetune\(epochs=zero\) seed 0: method.epochs must be int, not 'zero'"),
    (["--grid", "method.epochs=1,-3"], r"finetune\(epochs=-3\) seed 0: method.epochs must be at least"),
    (["--grid", "method.epoch=1,2"], "Finetune has no option 'epoch'; did you mean epochs"),
    (["--grid", "methods.epochs=1,2"], "there is no option 'methods'; did you mean method"),
    (["--grid", "seed=0..x"], "seeds in .* must be a list of whole numbers"),
    (["--grid", "method.epochs"], "must be an option and"),
    (["--grid", "method.epochs=1", "--grid", "method.epochs=2"], "given twice"), (["--grid", "a b=1"], "which is no option"),
    (["--grid", "method.epochs=1,2", "--method.epochs", "3"], "beside a grid that goes over it"),
    (["--grid", "method.epochs=0..400", "--grid", "method.lr=0..1:lin900"], "cells; at most"),
    (["--grid", "method.help=a"], "cannot go over"), (["--retry-failed", "--again"], "leave one of them out"),
    (["--launcher", "local", "--gpus-per-run"], "needs a value")])
def test_a_mistake_in_any_cell_is_one_sentence_and_leaves_nothing(words: list[str], said: str, tmp_path: Path,
                                                                  capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, f"runs: [{{scenario: {DIGITS}, methods: [{{class_path: finetune}}]}}]\n")
    assert re.search(said, mistake(["suite", str(file), "--runs", str(tmp_path / "runs"), *NONE, *words], capsys))
    assert not (tmp_path / "runs").exists()


def test_a_grid_runs_and_tells_before_and_while_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The expansion with its count, time and disk; then running, left, failed and the time that is left."""
    file = written(tmp_path, f"name: g\nruns: [{{scenario: {DIGITS}, methods: [finetune]}}]\n")
    argv = ["suite", str(file), "--runs", str(tmp_path / "runs"), *NONE, "--grid", "method.epochs=1,2", "--grid", "seed=0..1"]
    assert main(argv) == 0
    err = capsys.readouterr().err.splitlines()
    name = "split_digits(per_class=4, increment=5)"
    assert re.fullmatch(r"g: 4 runs; about \d+ s by a short probe, \d+ kB of records", err[0].replace(" of one process", ""))
    assert err[1:3] == [f"  {name} finetune(epochs={k}) × 2" for k in (1, 2)]
    assert re.fullmatch(re.escape(f"[1/4] {name} finetune(epochs=1) seed 0: average accuracy ") + r".*\(3 left, ETA \d+ \w+\)",
                        err[3])
    assert re.fullmatch(re.escape(f"[4/4] {name} finetune(epochs=2) seed 1: average accuracy ") + r".*\(none left\)", err[6])
    runs = load_all(tmp_path / "runs")
    assert sorted((r.record["method"]["args"]["epochs"], r.seed) for r in runs) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert main(argv) == 0
    again = capsys.readouterr().err.splitlines()
    assert "g: 4 runs, 4 of them not to be run" in again
    assert main([*argv, "--grid", "method.lr=0.05"]) == 0
    assert "by earlier records" in capsys.readouterr().err, "the same classes and epochs on the same scenario"


def test_runs_with_several_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["run", "--scenario", "split_digits", "--scenario.per_class", "4", "--method", "ncm", "--runs", str(tmp_path / "r"),
            "--tracking", "none"]
    assert main([*base, "--seeds", "0..2", "--jobs", "1"]) == 0
    runs = load_all(tmp_path / "r")
    assert sorted(r.seed for r in runs) == [0, 1, 2] and {r.record["suite"] for r in runs} == {"split_digits-ncm"}
    assert "  split_digits(per_class=4) ncm × 3" in capsys.readouterr().err
    for words, said in ((["--seeds", "0..2", "--seed", "1"], "leave out --seed"), (["--seeds", "x"], "whole numbers"),
                        (["--jobs", "2"], "give --seeds"), (["--seeds", "0..1", "--method.k", "2"], "no option 'k'")):
        assert said in mistake([*base, *words], capsys)


def test_only_what_failed_is_run_again_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "odd_grid.py").write_text(
        'from pathlib import Path\nfrom cl_bench import Method\n\nclass Odd(Method):\n    """Fails while a file says so."""\n\n'
        '    def __init__(self, backbone, *, k: int = 0):\n        super().__init__(backbone, epochs=1)\n        self.k = k\n\n'
        '    def begin(self, exp):\n        super().begin(exp)\n        if Path(__file__).with_name(f"bad{self.k}").exists():\n'
        '            raise RuntimeError("bad")\n')
    (tmp_path / "bad1").touch()
    file = written(tmp_path, f"name: g\nruns: [{{scenario: {DIGITS}, methods: ['{tmp_path / 'odd_grid.py'}:Odd']}}]\n")
    argv = ["suite", str(file), "--runs", str(tmp_path / "runs"), *NONE]
    assert main([*argv, "--grid", "method.k=0,1"]) == 1
    (tmp_path / "bad1").unlink()
    capsys.readouterr()
    assert main([*argv, "--grid", "method.k=0..2", "--retry-failed"]) == 0
    err = capsys.readouterr().err
    assert "Odd(k=2) seed 0: skipped, never begun" in err and "Odd(k=1) seed 0: taken up again" in err
    assert {r.record["method"]["args"]["k"]: r.status for r in load_all(tmp_path / "runs")} == {0: "finished", 1: "finished"}


def test_what_is_to_come_is_told_in_a_few_lines() -> None:
    rows = tuple((f"row {k}", 5, 5) for k in range(30))
    told = Expected("big", rows, 7200.0, False, 5e9, 2e9, 4).lines()
    assert told[0] == ("big: 150 runs; about 30 min (4 at once) by earlier records, 5.0 GB of records, 2.0 GB of "
                       "checkpoints in passing")
    assert told[1] == "  row 0 × 5" and told[-1] == "  ... and 18 more of 30 rows"
    assert "time unknown" in Expected("x", rows, None, True, 1, 0, 0).lines()[0]
    assert [duration(s) for s in (0.2, 59, 130, 9000, 400_000)] == ["1 s", "59 s", "2 min", "2.5 h", "4.6 days"]


def test_progress_counts_what_runs_and_what_is_left() -> None:
    progress = SuiteProgress("s", 5)
    for kind in ("skip", "start", "start", "error"):
        progress(kind, {"label": "[odd] label", "message": "[why]"})
    assert re.fullmatch(r"1 running, 2 left, 1 failed, 1 skipped, ETA \d+ \w+", progress.standing())

"""Tidy exports: one line per run, test and cell, with the numbers of the tables; choices of methods and columns."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import records

from cl_bench.command.cli import main
from cl_bench.compare import exports
from cl_bench.compare.comparison import compare
from cl_bench.numbers.statistics import compare_pair
from cl_bench.records.results import load_all


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    return records.write_suite(tmp_path_factory.mktemp("exports") / "runs", seeds=3)


def lines(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_one_line_per_run_gives_the_means_of_the_table(suite) -> None:
    made = compare(load_all(suite))
    found = lines(exports.runs_csv(made))
    assert len(found) == len(load_all(suite))
    group = next(g for g in made.groups if g.scenario == "split_digits")
    for row in group.rows:
        mine = [x for x in found if x["scenario"] == "split_digits" and x["method"] == row.method and x["status"] == "finished"]
        values = [float(x["forgetting_points"]) for x in mine]
        assert len(values) == row.n and (not values or np.mean(values) == pytest.approx(row.cells["forgetting"].mean))
    assert next(x for x in found if x["method"] == "joint")["reference"] == "upper bound"
    assert next(x for x in found if x["method"] == "sema")["average_accuracy_percent"] == ""


def test_one_line_per_pair_and_metric_gives_the_tests(suite) -> None:
    made = compare(load_all(suite))
    group = next(g for g in made.groups if g.scenario == "split_digits")
    rows = {row.method: row for row in group.rows}
    found = [x for x in lines(exports.tests_csv(made)) if x["scenario"] == "split_digits" and x["metric"] == "forgetting"]
    assert len(found) == 6 * 5 // 2
    for x in found:
        test = compare_pair(rows[x["a"]].values["forgetting"], rows[x["b"]].values["forgetting"])
        assert float(x["difference"]) == pytest.approx(test.difference.mean) and float(x["p_sign_flip"]) == test.p_sign_flip


def test_curves_hold_the_counts(suite) -> None:
    made = compare(load_all(suite))
    found = lines(exports.curves_csv(made))
    group = next(g for g in made.groups if g.scenario == "split_digits")
    run = next(r for r in group.rows if r.method == "lora").runs[1, None]
    mine = [x for x in found if (x["scenario"], x["method"], x["seed"]) == ("split_digits", "lora", "1")]
    assert len(mine) == (run.matrix.total > 0).sum()
    assert all(int(x["correct"]) == run.matrix.correct[int(x["row"]), run.matrix.columns.index(x["on"])] for x in mine)
    assert sum(x["kind"] == "stream" for x in found) == 30 * (3 * 5 + 1)


def test_the_command_follows_chosen_methods_and_columns(suite, tmp_path, capsys) -> None:
    files = [tmp_path / f"{kind}.csv" for kind in exports.TIDY]
    table = tmp_path / "t.md"
    argv = ["compare", str(suite), "--methods", "lora", "osft", "--columns", "forgetting", "plasticity", "--export", str(table)]
    assert main([*argv, *(word for file in files for word in ("--tidy", str(file)))]) == 0
    assert {x["method"] for x in lines(files[0].read_text())} == {"lora", "osft"}
    text = table.read_text()
    assert "forgetting (points)" in text and "plasticity (%)" in text
    assert "average accuracy (%)" not in text and "| ncm" not in text
    assert "plasticity" in capsys.readouterr().out


@pytest.mark.parametrize("argv,sentence", [
    (["--methods", "lorra"], "no run is of lorra"), (["--columns", "forgeting"], "no metric 'forgeting'"),
    (["--tidy", "x.csv"], "runs.csv"), (["--tidy", "runs.txt"], "runs.csv")])
def test_choices_that_are_none_are_told(suite, argv, sentence, capsys) -> None:
    assert main(["compare", str(suite), *argv]) == 2
    assert sentence in capsys.readouterr().err


def test_text_that_a_spreadsheet_would_run_is_inert(tmp_path) -> None:
    records.write(tmp_path, "x", records.record(label="=cmd()"))
    assert "'=cmd()" in exports.runs_csv(compare(load_all(tmp_path)))

"""The table of metrics: what each needs, that one place holds them all, and that one from outside goes everywhere."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import metric_toys
import numpy as np
import pytest
import records

from cl_bench import registry
from cl_bench.command.config import parse, plan_from
from cl_bench.compare.comparison import compare
from cl_bench.compare.health import run_flags
from cl_bench.compare.images import image_parts
from cl_bench.engine.runner import run
from cl_bench.numbers import metrics as m
from cl_bench.numbers.matrix import AccuracyMatrix, Stream
from cl_bench.records.results import load

LEARN, STREAM = {"scenario": {"kind": "learn"}}, {"scenario": {"kind": "stream"}}
NO_MATRIX, NO_STREAM = AccuracyMatrix.empty((), ()), Stream(())
RATES = [[90, 0, 0, 0], [80, 60, 0, 0], [85, 72, 88, 0], [70, 75, 80, 86]]


def test_a_record_of_learning_holds_the_four_forgettings() -> None:
    """The vector that separates the libraries: Chaudhry and FACIL, Avalanche, Mammoth and PILOT, LibContinual."""
    found = m.metrics_of(AccuracyMatrix.from_rates(RATES), NO_STREAM, LEARN)
    names = ("forgetting", "forgetting_learned", "forgetting_best_any", "forgetting_libcontinual")
    assert [round(found[name] or 0, 2) for name in names] == [8.33, 4.33, 9.33, 1.67]
    notes = [m.all_metrics()[name].note for name in names]
    assert all(word in note for word, note in zip(("Chaudhry", "Avalanche", "PILOT", "LibContinual"), notes, strict=True))


def test_a_metric_is_there_exactly_where_its_needs_are() -> None:
    stream = records.adapter_stream("tent", 0)
    clean = AccuracyMatrix.from_rates([[96.0], [95.0]], learned=[None])
    streamed = m.metrics_of(clean, stream, STREAM)
    assert streamed["source_error_before"] == pytest.approx(4) and streamed["source_forgetting"] == pytest.approx(1)
    assert streamed["mean_error"] == pytest.approx(stream.mean_error()) and "average_accuracy" not in streamed
    before = m.metrics_of(AccuracyMatrix.from_rates([[96.0]], learned=[None]), NO_STREAM, STREAM)
    assert before == {"source_error_before": pytest.approx(4), "source_error_after": None, "source_forgetting": None}
    assert m.metrics_of(NO_MATRIX, NO_STREAM, LEARN) == {}
    deployed = m.metrics_of(AccuracyMatrix.from_rates(RATES), stream, {"scenario": {"kind": "deployed"}})
    assert {"average_accuracy", "mean_error"} <= set(deployed) and "source_forgetting" not in deployed
    assert "forgetting" not in m.metrics_of(AccuracyMatrix.from_rates(RATES), NO_STREAM, LEARN, but=["forgetting"])


def test_costs_are_read_where_the_engine_counted_them() -> None:
    record = {"cost": {"seconds": {"learn": 2.0, "adapt": 3.0, "total": 9.0}, "forward_images": 4000}}
    table = m.all_metrics()
    assert table["seconds"].read({}, record) == 5 and table["seconds_total"].read({}, record) == 9
    assert table["forward_images"].read({}, record) == 4 and np.isnan(table["peak_memory"].read({}, record))
    assert np.isnan(table["forgetting"].read({"forgetting": None}, record)), "not measured is not 0"


@pytest.mark.parametrize("wrong", [{"name": "my metric"}, {"of": None}, {"paths": (("a",),)}, {"shown": ("learning",)}])
def test_a_metric_that_says_nothing_or_two_things_is_refused(wrong: dict) -> None:
    given = {"name": "x", "label": "x", "unit": "%", "higher": True, "of": lambda *_: 0.0, **wrong}
    with pytest.raises(ValueError, match="metric"):
        m.Metric(**given)


# -- from outside -----------------------------------------------------------------------------------------------------

OUTSIDE = '''
from cl_bench import Metric

FIRST = Metric("first_test_set", "first test set", "%", True, lambda m, s, r: m.percent[-1, 0], ("learning",), "accuracy",
               "last accuracy on the first test set", shown=("learn",))
MORE = [Metric("trained_on", "trained on", "images", None, lambda m, s, r: sum(e["train_size"] for e in r["experiences"]),
               ("experiences",), decimals=0, shown=("learn",)),
        Metric("unlearned", "unlearned", "%", True, lambda m, s, r: 1.0, ("unlearning.forget_set",))]
BROKEN = Metric("broken", "broken", "%", True, lambda m, s, r: 1 / 0, ("learning",))
TAKEN = Metric("forgetting", "mine", "%", True, lambda m, s, r: 0.0)
WORD = ["forgetting"]
'''


def installed(folder: Path, *names: str) -> dict[str, str]:
    """An environment in which a distribution that brings metrics counts as installed."""
    info = folder / "more_metrics-0.1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "more_metrics.py").write_text(OUTSIDE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: more-metrics\nVersion: 0.1.0\n")
    points = "\n".join(f"{name.lower()} = more_metrics:{name}" for name in names)
    (info / "entry_points.txt").write_text(f"[cl_bench.metrics]\n{points}\n")
    return {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


def call(environment: dict[str, str], *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "cl_bench.cli", *argv], capture_output=True, text=True, env=environment)


def test_a_metric_from_outside_is_in_the_record_the_table_the_page_and_the_exports(tmp_path: Path) -> None:
    outside, runs = installed(tmp_path / "site", "FIRST", "MORE"), tmp_path / "runs"
    ran = call(outside, "run", "--scenario", "split_digits", "--scenario.per_class", "4", "--method", "ncm", "--device", "cpu",
               "--runs", str(runs), "--tracking", "none")
    assert ran.returncode == 0, ran.stderr
    (folder,) = (f for f in runs.iterdir() if (f / "run.json").is_file())
    record = json.loads((folder / "run.json").read_text())
    value = 100 * record["matrix"]["correct"][-1][0] / record["matrix"]["total"][-1][0]
    assert record["metrics"]["first_test_set"] == pytest.approx(value)
    assert record["metrics"]["trained_on"] == sum(e["train_size"] for e in record["experiences"])
    assert "unlearned" not in record["metrics"], "what it needs is not there"
    files = [tmp_path / f"t.{ending}" for ending in ("csv", "md", "tex")]
    shown = call(outside, "compare", str(runs), "--html", str(tmp_path / "p.html"),
                 *(word for file in files for word in ("--export", str(file))))
    assert shown.returncode == 0, shown.stderr
    line = next(csv.DictReader(files[0].open()))
    assert float(line["first_test_set_percent"]) == pytest.approx(value, abs=0.005) and line["trained_on_images"] == "40"
    assert f"{value:.2f}" in files[1].read_text() and r"\shortstack[r]{first\\test\\set" in files[2].read_text()
    page = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "p.html").read_text(), re.S)[1])  # type: ignore[index]
    (row,) = page["groups"][0]["rows"]
    assert row["cells"]["first_test_set"][0] == f"{value:.2f}"
    assert page["metrics"]["first_test_set"]["note"] == "last accuracy on the first test set"
    again = call(outside, "compare", str(records.write_learner(tmp_path / "older", "lora", 0)), "--export", str(files[0]))
    assert again.returncode == 0 and float(next(csv.DictReader(files[0].open()))["first_test_set_percent"]) > 0, \
        "a record made without the metric has what it takes to compute it"


@pytest.mark.parametrize("name,sentence", [
    ("TAKEN", "the metric 'forgetting' of more-metrics has the name of another"), ("WORD", "no cl_bench.Metric"),
    ("GONE", "cannot be imported"), ("BROKEN", "the metric broken of more-metrics cannot be computed: ")])
def test_a_metric_from_outside_that_cannot_be_is_told(tmp_path: Path, name: str, sentence: str) -> None:
    ran = call(installed(tmp_path / "site", name), "compare", str(records.write_learner(tmp_path / "runs", "lora", 0)))
    assert ran.returncode == 2 and sentence in ran.stderr and "Traceback" not in ran.stderr


def test_the_group_is_known_to_the_registry() -> None:
    assert registry.GROUPS["metrics"] == "cl_bench.metrics"


# -- what the engine tells the matrix ---------------------------------------------------------------------------------

COMMON = ["--device", "cpu", "--threads", "1", "--checkpoint", "false", "--method", "ncm"]


def recorded(runs: Path, *argv: str) -> dict:
    return load(run(plan_from(parse([*argv, *COMMON])), runs)).record


def test_a_run_says_which_row_taught_which_column(tmp_path: Path) -> None:
    record = recorded(tmp_path, "--scenario", "split_digits", "--scenario.per_class", "4")
    assert record["matrix"]["learned"] == [0, 1, 2, 3, 4] and record["metrics"]["forgetting"] is not None


def test_a_run_keeps_what_comparing_needs(tmp_path: Path) -> None:
    """True classes beside the predictions; time and memory of the method, not of the machine or the process."""
    argv = ["--scenario", "deployed_digits", "--scenario.corruptions", "[fog]"]
    made = load(run(plan_from(parse([*argv, *COMMON])), tmp_path))
    parts = image_parts(made, "average_accuracy")
    assert parts is not None and parts.values.sum() == pytest.approx(made.metrics["average_accuracy"])
    online = image_parts(made, "mean_error")
    assert online is not None and online.values.sum() == pytest.approx(made.metrics["mean_error"])
    cost = made.record["cost"]
    assert cost["busy_seconds"]["learn"] > 0 and set(cost["busy_seconds"]) == {"source", "learn", "adapt", "evaluate"}
    assert 0 <= cost["memory_bytes"] < cost["peak_memory_bytes"]


def test_losses_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    argv = ["--scenario", "split_digits", "--scenario.per_class", "4", "--method", "finetune", "--method.lr", "1e12"]
    made = load(run(plan_from(parse([*argv, *COMMON[:-2]])), tmp_path))
    assert made.record["cost"]["nonfinite_losses"] > 0 and "nonfinite" in run_flags(made)
    if "unlearned" in run_flags(made):
        assert made.metrics["forgetting"] is None


@pytest.mark.parametrize("tests", ["Shared", "Namesake", "AsMany"])
def test_test_sets_that_no_experience_teaches_are_not_forgotten(tmp_path: Path, tests: str) -> None:
    """One test set for all; one that happens to be called like an experience; as many as there are experiences."""
    record = recorded(tmp_path, "--scenario", f"{metric_toys.__file__}:{tests}")
    undefined = ("forgetting", "forgetting_learned", "forgetting_best_any", "forgetting_libcontinual", "backward_transfer",
                 "plasticity", "stability", "transfer")
    assert [record["metrics"][name] for name in undefined] == [None] * len(undefined)
    assert record["metrics"]["average_accuracy"] is not None
    (row,) = compare([load(next(f.parent for f in tmp_path.glob("*/run.json")))]).groups[0].rows
    assert np.isnan(row.cells["forgetting"].mean)


def test_a_task_never_seen_is_not_measured_even_where_it_is_named(tmp_path: Path) -> None:
    record = recorded(tmp_path, "--scenario", "split_digits", "--scenario.per_class", "4", "--scenario.answers", "task")
    total = [[cell is not None for cell in row] for row in record["matrix"]["total"]]
    assert total == [[j <= i for j in range(5)] for i in range(5)] and record["warnings"] == []


def test_no_metric_stands_twice_and_costs_come_last() -> None:
    names = [metric.name for metric in m.BUILT_IN]
    families = [metric.family for metric in m.all_metrics().values()]
    assert len(set(names)) == len(names) and families == sorted(families, key=lambda f: f == "cost")

"""From Python and notebooks: the same runs, numbers and refusals as on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import records

import cl_bench
from cl_bench import Method
from cl_bench.compare.comparison import compare
from cl_bench.errors import UserError
from cl_bench.types import Batch

QUICK = {"scenario_args": {"per_class": 4}, "device": "cpu", "threads": 1, "checkpoint": False}


class Mine(Method):
    """A head on frozen features."""

    def __init__(self, backbone, *, lr: float = 1e-2, epochs: int = 1, batch_size: int = 32) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.backbone.requires_grad_(False)

    def training_step(self, batch: Batch, batch_idx: int):
        return self.loss(self(batch.x), batch.y, among=self.current)


def test_a_class_runs_over_seeds_and_shows_itself(tmp_path) -> None:
    made = cl_bench.run("split_digits", Mine, seeds=2, runs=tmp_path, method_args={"lr": 0.02}, **QUICK)
    assert [r.seed for r in made] == [0, 1] and all(r.done for r in made)
    assert made[0].record["config"]["method"]["init_args"]["lr"] == 0.02
    values = [r.metrics["average_accuracy"] for r in made]
    assert made.metrics["average_accuracy"] == pytest.approx(np.mean(values))
    assert (made.matrix.correct == made[0].matrix.correct + made[1].matrix.correct).all()
    assert made.plot().data[0].type == "heatmap"
    assert "Mine" in made._repr_html_() and "<table>" in made._repr_html_()
    assert len(cl_bench.load(tmp_path)) == 2


@pytest.mark.soak
def test_a_class_typed_into_main_runs(tmp_path) -> None:
    """As in a notebook's cell: the class has no file of its own to be imported from."""
    code = ("import sys, json, cl_bench\nfrom cl_bench import Method\nclass Typed(Method):\n"
            "    'Trains all.'\n    def __init__(self, backbone, *, lr: float = 1e-3, epochs: int = 1, batch_size: int = 32):\n"
            "        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)\n"
            f"made = cl_bench.run('split_digits', Typed, seeds=[3], runs=sys.argv[1], **json.loads('{json.dumps(QUICK)}'))\n"
            "print(made[0].seed, made.metrics['average_accuracy'] > 0)")
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.strip().endswith("3 True"), ran.stderr[-800:]


def test_mistakes_are_told_before_any_run(tmp_path) -> None:
    with pytest.raises(UserError, match="did you mean split_digits"):
        cl_bench.run("split_digit", "ncm", runs=tmp_path)
    with pytest.raises(UserError, match="seeds"):
        cl_bench.run("split_digits", "ncm", seeds=0, runs=tmp_path)
    with pytest.raises(UserError):
        cl_bench.run("split_digits", "ncm", method_args={"nothing": 1}, runs=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    return records.write_suite(tmp_path_factory.mktemp("api") / "runs", seeds=3)


def test_loaded_runs_are_chosen_and_compared(suite) -> None:
    runs = cl_bench.load(suite)
    lora = runs.where(scenario="split_digits", method="lora").finished
    assert [r.seed for r in lora] == [0, 1, 2]
    table = cl_bench.compare(runs).table()
    groups = compare(runs).groups
    assert len(table) == sum(len(g.rows) for g in groups)
    row = next(r for r in table.rows if r["scenario"] == "split_digits" and r["method"] == "lora")
    assert row["average_accuracy"] == pytest.approx(lora.metrics["average_accuracy"])
    assert row["average_accuracy_low"] < row["average_accuracy"] < row["average_accuracy_high"]
    assert "● " in str(table) and "average accuracy (%) ↑" in str(table)
    only = cl_bench.compare(runs).table("forgetting")
    assert "forgetting" in only[0] and "average_accuracy" not in only[0]


def test_a_mean_over_different_methods_is_refused(suite) -> None:
    with pytest.raises(UserError, match=r"choose with \.where"):
        _ = cl_bench.load(suite).metrics


@pytest.mark.parametrize("kind", ["forgetting", "anytime", "balance", "ranking", "stream"])
def test_plots_are_the_figures_for_papers(suite, kind) -> None:
    from cl_bench.compare.figure import drawing

    runs, scenario = cl_bench.load(suite), "digits_c" if kind == "stream" else "split_digits"
    figure, made = runs.plot(kind, scenario=scenario), drawing(compare(runs), kind, scenario)
    assert [t.name for t in figure.data] == [line.name for line in made.lines]
    assert list(figure.data[0].y) == made.lines[0].y


def test_names_of_runs_are_text_in_a_notebook(tmp_path) -> None:
    records.write(tmp_path, "x", records.record(label="<script>alert(1)</script>", scenario="<b>s"))
    html = cl_bench.load(tmp_path)._repr_html_()
    assert "<script>" not in html and "<b>" not in html and "&lt;script&gt;" in html


def test_compare_is_the_package_and_the_function(suite) -> None:
    import cl_bench.compare.comparison as module

    assert module.compare is compare and callable(cl_bench.compare) and cl_bench.compare.comparison is module


def test_importing_costs_nothing() -> None:
    code = "import sys, cl_bench; cl_bench.load; print([m for m in ('torch', 'plotly', 'scipy', 'mlflow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"

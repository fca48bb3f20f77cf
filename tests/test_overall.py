"""Methods over scenarios and settings of one method: aggregates against scipy and closed forms, one table in every form."""

from __future__ import annotations

import csv
import io
import itertools

import numpy as np
import pytest
import records
from scipy import stats

from cl_bench.command.cli import main
from cl_bench.compare import sheets
from cl_bench.compare.comparison import compare
from cl_bench.compare.dashboard.payload import payload
from cl_bench.compare.overall import aggregates, overall, ranking
from cl_bench.numbers.matrix import AccuracyMatrix
from cl_bench.numbers.statistics import (
    aggregate,
    average_ranks,
    interquartile_mean,
    main_effects,
    performance_profile,
    probability_of_improvement,
)
from cl_bench.records.results import load_all


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return compare(load_all(records.write_suite(tmp_path_factory.mktemp("over") / "runs", seeds=3)))


# -- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 4, 7, 24])
def test_the_interquartile_mean_is_scipys_trimmed_mean(n) -> None:
    x = np.random.default_rng(n).normal(50, 20, n)
    assert interquartile_mean(x) == pytest.approx(stats.trim_mean(x, 0.25))


def test_probability_of_improvement_is_mann_whitneys_statistic_over_the_product_of_sizes() -> None:
    g = np.random.default_rng(0)
    a, b = ([g.integers(0, 9, n).astype(float) for n in sizes] for sizes in ((3, 5), (4, 2)))  # with ties
    expected = [stats.mannwhitneyu(x, y).statistic / (x.size * y.size) for x, y in zip(a, b, strict=True)]
    assert probability_of_improvement(a, b) == pytest.approx(np.mean(expected))
    assert probability_of_improvement(a, b) + probability_of_improvement(b, a) == pytest.approx(1)


def test_a_profile_is_the_share_above_with_scenarios_weighing_the_same() -> None:
    assert performance_profile([[10, 20], [30, 30, 30, 30]], [5, 10, 25, 30]).tolist() == [1, 0.75, 0.5, 0]


def test_bootstrap_intervals_of_the_aggregate_resample_within_scenarios() -> None:
    # scenarios far apart: resampling within them keeps every interval between them
    scores = [[[10.0, 12.0], [80.0, 82.0]], [[50.0], [50.0]]]
    of = aggregate(scores)
    assert of.iqm.tolist() == [pytest.approx(46), 50] and 45 <= of.low[0] <= of.iqm[0] <= of.high[0] <= 47
    assert np.isnan(of.low[1]) and of.runs == (1, 2)
    assert of.better[0, 1] == 0.5 and of.profile[:, 0].tolist() == [pytest.approx(0.75), 1]  # thresholds begin at the lowest


def test_main_effects_are_the_variances_of_an_additive_model() -> None:
    a, b = np.array([0.0, 1, 4]), np.array([0.0, 3])
    grid = list(itertools.product(range(3), range(2)))
    values = [a[i] + b[j] for i, j in grid]
    whole = a.var() + b.var()
    assert main_effects(grid, values) == pytest.approx([a.var() / whole, b.var() / whole])
    assert main_effects(grid, [a[i] * (j - 0.5) for i, j in grid])[0] == pytest.approx(0)  # an interaction alone
    assert np.isnan(main_effects([(0,), (1,)], [1, 1])).all() and np.isnan(main_effects([(0,)], [1])).all()


# -- tables -----------------------------------------------------------------------------------------------------------


def test_one_table_over_scenarios_has_the_cells_of_the_tables_and_their_mean_ranks(made) -> None:
    (one,) = overall(made)  # the stream stands alone
    groups = [g for g in made.groups if g.primary == "average_accuracy"]
    assert one.metric == "average_accuracy" and len(one.scenarios) == 2
    competitors = [m for m in ("osft", "codyra", "ncm", "lora")]
    means = [[next(r for r in g.rows if r.method == m).cells[one.metric].mean for m in competitors] for g in groups]
    assert [one.ranks[m] for m in competitors] == average_ranks(means).mean(axis=0).tolist()
    assert "joint" not in one.ranks and "joint" in one.methods
    lines = list(csv.DictReader(io.StringIO(sheets.to_csv(made, over=True))))
    assert {x["method"] for x in lines} == set(one.methods)
    tex = sheets.to_latex(made, over=True)
    assert r"\label{tab:average-accuracy-on-all-scenarios}" in tex and tex.count(r"\toprule") == 1
    assert "| mean rank |" in sheets.to_markdown(made, over=True)


def test_the_command_writes_one_table_and_says_where_there_is_none(made, tmp_path, capsys) -> None:
    records.write_suite(tmp_path / "runs", seeds=2)
    assert main(["compare", str(tmp_path / "runs"), "--overall", "--columns", "forgetting", "plasticity", "--export",
                 str(tmp_path / "t.tex")]) == 0
    out, tex = capsys.readouterr().out, (tmp_path / "t.tex").read_text()
    assert "Forgetting (points ↓) on all scenarios" in out and "Plasticity (%" in out
    assert tex.count(r"\begin{table}") == 2 and r"\label{tab:forgetting-points-on-all-scenarios}" in tex
    records.write_learner(tmp_path / "one", "lora", 0)
    assert main(["compare", str(tmp_path / "one"), "--overall"]) == 2
    assert "no two scenarios" in capsys.readouterr().err


def test_a_sweep_on_one_scenario_does_not_take_the_ranks_of_others(tmp_path) -> None:
    records.write_suite(tmp_path, seeds=1, extra=False)
    for k in range(9):
        records.write_learner(tmp_path / f"w{k}", "lora", 0, scenario="wide", label=f"only{k}")
    found = ranking([g for g in compare(load_all(tmp_path)).groups if g.primary == "average_accuracy"], "average_accuracy")
    assert [g.scenario for g in found.groups] == ["split_digits", "split_glyphs"] and len(found.methods) == 4


def test_aggregates_are_of_the_runs_of_the_ranked_scenarios(made) -> None:
    groups = [g for g in made.groups if g.primary == "average_accuracy"]
    found = ranking(groups, "average_accuracy")
    of = aggregates(found, "average_accuracy")
    k = found.methods.index("lora")
    runs = [list(next(r for r in g.rows if r.method == "lora").values["average_accuracy"].values()) for g in found.groups]
    assert of is not None and of.iqm[k] == pytest.approx(stats.trim_mean(np.concatenate(runs), 0.25))
    shown = next(r for r in payload(made, "x")["ranks"] if r["metric"] == "average_accuracy")["aggregate"]
    assert shown["iqm"][k] == pytest.approx(of.iqm[k], abs=1e-3) and aggregates(found, "forgetting") is None


def test_settings_on_the_page_are_those_of_the_records(tmp_path) -> None:
    a, b = {0.1: 0.0, 0.2: 2.0, 0.4: 8.0}, {4: 0.0, 8: 6.0}
    for lr, rank in itertools.product(a, b):
        matrix = AccuracyMatrix.from_rates([[90, np.nan], [50 + a[lr] + b[rank], 50 + a[lr] + b[rank]]], size=1000)
        records.write(tmp_path, f"er-{lr}-{rank}", records.record("s", "er", label=f"er(lr={lr}, rank={rank})", args={
            "lr": lr, "rank": rank, "epochs": 1}, matrix=matrix, metrics=records.metrics_of_matrix(matrix)))
    (sweep,) = payload(compare(load_all(tmp_path)), "x")["groups"][0]["sweeps"]
    assert (sweep["base"], sweep["parameters"], sweep["full"]) == ("er", ["lr", "rank"], True)
    whole = np.var(list(a.values())) + np.var(list(b.values()))
    assert sweep["importance"]["average_accuracy"] == pytest.approx([np.var(list(a.values())) / whole,
                                                                    np.var(list(b.values())) / whole], abs=1e-3)
    assert sorted(map(tuple, sweep["values"])) == sorted(itertools.product(a, b))

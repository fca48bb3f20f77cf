"""The page as a file: size, speed, its data, and that nothing in the data can become markup."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import records

from cl_bench.compare.comparison import compare
from cl_bench.compare.dashboard import render
from cl_bench.compare.dashboard.page import SCRIPTS, STYLES, TEMPLATES, data_json
from cl_bench.compare.dashboard.payload import payload
from cl_bench.compare.selection import choices
from cl_bench.compare.tables import cell_text
from cl_bench.errors import UserError
from cl_bench.numbers.matrix import AccuracyMatrix
from cl_bench.numbers.statistics import bca_interval
from cl_bench.records.results import Run, load_all


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return records.write_suite(tmp_path_factory.mktemp("runs"), seeds=3)


def test_one_file_that_needs_no_network(suite, tmp_path):
    page = render(load_all(suite), tmp_path / "sub" / "page.html", title="A & B").read_text()
    assert page.startswith("<!doctype html>") and "<title>A &amp; B</title>" in page
    assert "connect-src 'none'" in page
    own = page.replace(re.search(r"<script>(/\*\*.*?)</script>", page, re.S)[1], "")  # without the chart library
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", own)
    data = data_of(page)
    assert len(data["runs"]) == len(load_all(suite)) and data["groups"][0]["scenario"] == "digits_c"


def test_numbers_on_the_page_are_those_of_the_tables(suite):
    comparison = compare(load_all(suite))
    data = payload(comparison, "x")
    for group, shown in zip(comparison.groups, data["groups"], strict=True):
        for row, cells in zip(group.rows, shown["rows"], strict=True):
            assert data["methods"][cells["method"]]["name"] == row.method
            for name in group.metrics:
                text, spread, mean, _, _ = cells["cells"][name]
                assert cell_text(row, name) == (f"{text} ± {spread}" if spread else text)
                assert (mean is None) == (text == "–")
    assert sum(len(sheet["rows"]) for sheet in data["exports"]["csv"]["tables"]) == sum(len(g.rows) for g in comparison.groups)


def test_pairs_and_ranks_are_those_of_the_statistics(suite):
    data = payload(compare(load_all(suite)), "x")
    group = data["groups"][1]
    pairs = group["pairs"]["average_accuracy"]
    k = len(pairs["methods"])
    assert len(pairs["tests"]) == k * (k - 1) // 2
    first = {row["method"]: row["cells"]["average_accuracy"][2] for row in group["rows"]}
    n, mean, *_ = pairs["tests"][0]
    assert n == 3 and mean == pytest.approx(first[pairs["methods"][0]] - first[pairs["methods"][1]], abs=1e-3)
    learn = next(r for r in data["ranks"] if r["metric"] == "average_accuracy")
    assert len(learn["scenarios"]) == 2 and sum(learn["ranks"]) == pytest.approx(4 * 5 / 2)  # bounds are no competitors
    stream = next(r for r in data["ranks"] if r["metric"] == "mean_error")
    assert "ranks" not in stream


def test_of_many_methods_the_best_are_tested_pair_by_pair(suite, monkeypatch):
    monkeypatch.setattr("cl_bench.compare.dashboard.payload.MOST_PAIRED", 3)
    group = payload(compare(load_all(suite)), "x")["groups"][1]
    for name, best in (("average_accuracy", max), ("forgetting", min)):
        shown = group["pairs"][name]
        means = {row["method"]: row["cells"][name][2] for row in group["rows"] if row["cells"][name][2] is not None}
        wanted = sorted(means, key=means.__getitem__, reverse=best is max)[:3]
        assert set(shown["methods"]) == set(wanted) and len(shown["tests"]) == 3 and shown["of"] == len(means) > 3


def test_bootstrap_intervals_only_where_there_are_pairs_enough(tmp_path):
    for seed in range(8):
        records.write_learner(tmp_path, "lora", seed)
        records.write_learner(tmp_path, "osft", seed)
        if seed < 7:
            records.write_learner(tmp_path, "ncm", seed)
    comparison = compare(load_all(tmp_path))
    shown = payload(comparison, "x")["groups"][0]["pairs"]["average_accuracy"]
    rows = {row.method: row.values["average_accuracy"] for row in comparison.groups[0].rows}
    names = [m["name"] for m in payload(comparison, "x")["methods"]]
    told = {(names[a], names[b]): test for (a, b), test in zip(combinations(shown["methods"], 2), shown["tests"], strict=True)}
    for (a, b), (n, *_, low, high) in told.items():
        if "ncm" in (a, b):
            assert n == 7 and low is high is None
        else:
            differences = [rows[a][key] - rows[b][key] for key in sorted(rows[a])]
            interval = bca_interval(differences)
            assert n == 8 and (low, high) == pytest.approx((interval.low, interval.high), abs=1e-3)


def test_choices_without_labels_are_those_of_the_command(suite):
    comparison = compare(load_all(suite))
    data = payload(comparison, "x")
    names = [m["name"] for m in data["methods"]]
    for group, shown in zip(comparison.groups, data["groups"], strict=True):
        made = choices(group)
        assert (group.kind == "stream") == bool(made) and len(made) == len(shown["choices"])
        for choice, entry in zip(made, shown["choices"], strict=True):
            assert names[entry["chosen"]] == choice.selection.chosen
            assert entry["gap"] == pytest.approx(choice.selection.gap, abs=1e-3)
            assert [names[i] for i in entry["refused"]] == list(choice.selection.refused) == ["tent (lr=0.1)"]


def test_short_names_tell_methods_apart():
    def short(*given: tuple[str, str, dict]) -> list[str]:
        runs = [Run(Path("x"), {"id": str(k), **records.record("s", name, k, label=label, args=args)}, True)
                for k, (name, label, args) in enumerate(given)]
        return [m["short"] for m in payload(compare(runs), "x")["methods"]]

    eight, sixteen = ("lora", "lora(rank=8, lr=0.1)", {"rank": 8, "lr": 0.1}), ("lora", "lora(lr=0.1)", {"rank": 16, "lr": 0.1})
    assert short(eight) == ["lora"]
    assert short(eight, sixteen) == ["lora (rank=16)", "lora (rank=8)"]
    assert short(("lora", "mine", {})) == ["mine"]  # somebody's own label stays
    nested = [("er", f"er(of=x{k})", {"of": {"class_path": f"x{k}"}}) for k in range(2)]
    assert short(*nested) == ["er(of=x0)", "er(of=x1)"]


def test_ranks_leave_out_what_cannot_be_ranked(tmp_path):
    for scenario in ("one", "two"):
        for method in ("lora", "codyra", "osft"):
            records.write_learner(tmp_path, method, 0, scenario=scenario)
    records.write_learner(tmp_path, "ncm", 0, scenario="one")
    records.write_learner(tmp_path, "lora", 0, scenario="alone")
    records.write_learner(tmp_path, "ncm", 0, scenario="others")
    records.write_learner(tmp_path, "joint", 0, scenario="others")
    data = payload(compare(load_all(tmp_path)), "x")
    (entry,) = data["ranks"]
    assert entry["scenarios"] == ["one · tiny_vit", "two · tiny_vit"] and len(entry["methods"]) == 3
    assert sum(entry["ranks"]) == pytest.approx(1 + 2 + 3)
    assert entry["left_out"] == ["alone · tiny_vit", "others · tiny_vit", "ncm (not on all scenarios)"]


def test_unfinished_failed_and_hidden_cells_are_said(suite):
    data = payload(compare(load_all(suite)), "x")
    group = next(g for g in data["groups"] if g["scenario"] == "split_digits")
    names = [m["name"] for m in data["methods"]]
    rows = {names[row["method"]]: row for row in group["rows"]}
    assert rows["sema"]["failed"] == 1 and rows["sema"]["n"] == 0 and rows["sema"]["cells"]["forgetting"][0] == "–"
    assert rows["lora"]["unfinished"] == 1 and rows["lora"]["n"] == 3
    matrix = group["learn"]["methods"][names.index("lora")]["matrix"]
    assert matrix[0][1] is None and matrix[1][0] is not None
    run = next(r for r in data["runs"] if r["status"] == "failed")
    assert "matched no layer" in run["error"] and "matrix" not in run


def test_a_method_with_only_unfinished_runs_shows_what_there_is(tmp_path):
    matrix = AccuracyMatrix.from_rates([[90, np.nan, np.nan], [80, 70, np.nan], [np.nan] * 3])
    records.write(tmp_path, "a", records.record(matrix=matrix, status="running"), done=False)
    data = payload(compare(load_all(tmp_path)), "x")
    entry = data["groups"][0]["learn"]["methods"][0]
    assert entry["partial"] is True and entry["anytime"][0] == [90, 75, None]
    assert data["groups"][0]["rows"][0]["n"] == 0


def test_class_orders_get_common_names(tmp_path):
    for order, names in enumerate((("classes 0-1", "classes 2-3"), ("classes 3-0", "classes 1-2"))):
        matrix = AccuracyMatrix.from_rates([[90, np.nan], [80, 70]], rows=names, columns=names)
        records.write(tmp_path, f"a{order}", records.record(matrix=matrix, order=order))
    learn = payload(compare(load_all(tmp_path)), "x")["groups"][0]["learn"]
    assert learn["phases"] == ["experience 1", "experience 2"] and learn["methods"][0]["n"] == 2


def test_collapse_and_visits(suite):
    data = payload(compare(load_all(suite)), "x")
    stream = data["groups"][0]["stream"]
    number = [m["name"] for m in data["methods"]].index("tent (lr=0.1)")
    assert stream["methods"][number]["collapsed"] == [0] * 26 + [1] * 4
    assert stream["methods"][number]["visits"] == [1, 2] and len(stream["entries"]) == 30


def test_hostile_names_stay_data(tmp_path):
    evil = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>\u2028"
    records.write(tmp_path, "a", records.record(label=evil, scenario=evil, error=evil, status="failed"))
    page = render(load_all(tmp_path), tmp_path / "p.html", title=evil).read_text()
    assert "<script>alert(1)" not in page and "<img src=x" not in page and "\u2028" not in page.split("id=\"data\"")[1]
    assert data_of(page)["methods"][0]["name"] == evil
    assert data_json({"a": evil}).isascii() or "<" not in data_json({"a": evil})


def test_different_protocols_are_refused_or_mixed_knowingly(tmp_path):
    records.write_learner(tmp_path, "codyra", 0)
    records.write_learner(tmp_path, "lora", 0, fields={"test_batch_size": 1})
    with pytest.raises(UserError, match="test_batch_size"):
        render(load_all(tmp_path), tmp_path / "p.html")
    assert not (tmp_path / "p.html").exists()
    mixed = data_of(render(load_all(tmp_path), tmp_path / "p.html", mix=True).read_text())
    assert "Mixed protocols" in mixed["groups"][0]["notes"][0]
    assert len(data_of(render(load_all(tmp_path), tmp_path / "p.html", by="fingerprint").read_text())["groups"]) == 2


def test_unreadable_runs_are_listed(tmp_path):
    records.write_learner(tmp_path, "codyra", 0)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{")
    assert "not valid JSON" in data_of(render(load_all(tmp_path), tmp_path / "p.html").read_text())["problems"][0]


def test_training_curves_are_thinned(tmp_path):
    events = [{"t": i, "kind": "loss", "experience": "a", "step": i, "value": 1 / (i + 1)} for i in range(5000)]
    records.write(tmp_path, "a", records.record(), [*events, {"kind": "warning", "text": "x" * 999}])
    run = payload(compare(load_all(tmp_path)), "x")["runs"][0]
    steps, values = run["losses"]["a"]
    assert 60 <= len(steps) == len(values) <= 200 and steps[0] == 0
    assert len(run["tail"]) == 1 and len(run["tail"][0]) == 400


def test_unwritable_place_is_one_sentence(suite, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        render(load_all(suite), tmp_path / "file" / "page.html")


def test_a_page_of_200_runs_is_under_7_megabytes(tmp_path):
    for seed in range(12):
        for method in records.LEARNERS:
            records.write_learner(tmp_path / "runs", method, seed)
            records.write_learner(tmp_path / "runs", method, seed, scenario="split_glyphs")
        for method in records.ADAPTERS:
            records.write_adapter(tmp_path / "runs", method, seed)
    page = render(load_all(tmp_path / "runs"), tmp_path / "page.html")
    assert page.stat().st_size < 7_000_000


def test_no_heavy_import():
    code = ("import sys, cl_bench.compare.dashboard;"
            "print([m for m in ('torch', 'scipy', 'mlflow', 'plotly', 'jinja2', 'pandas') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_templates_are_all_used_and_short():
    assert {p.name for p in TEMPLATES.iterdir()} == {*STYLES, *SCRIPTS, "page.html"}
    for path in TEMPLATES.iterdir():
        text = path.read_text()
        assert text.count("\n") < 400 and not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(", text), path

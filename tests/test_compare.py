"""Comparing runs: what may stand together, the numbers of every export, and honesty about what is missing."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import records
from rich.console import Console

from cl_bench import cli
from cl_bench.compare import sheets, tables
from cl_bench.compare.comparison import compare, differing_fields, value_of
from cl_bench.compare.dashboard.payload import payload
from cl_bench.errors import UserError
from cl_bench.numbers.matrix import AccuracyMatrix
from cl_bench.numbers.metrics import all_metrics
from cl_bench.records.results import load_all


def known(folder: Path, method: str, seed: int, last: float, **over) -> Path:
    """A run of two tasks with known numbers: 90, then 80 and ``last``."""
    matrix = AccuracyMatrix.from_rates([[90, np.nan], [80, last]], size=1000)
    return records.write(folder, f"{method}-s{seed}-{over.get('order', 'x')}-{last}".replace(".", "_"),
                         records.record(method=method, seed=seed, matrix=matrix, **over))


def test_known_numbers(tmp_path):
    for seed, last in enumerate((70, 72, 74)):
        known(tmp_path, "codyra", seed, last)
    group = compare(load_all(tmp_path)).groups[0]
    row = group.rows[0]
    assert (group.scenario, group.backbone, group.kind, row.n) == ("split_digits", "tiny_vit", "learn", 3)
    assert row.cells["average_accuracy"].mean == pytest.approx(76)
    assert row.cells["average_accuracy"].half_width == pytest.approx(4.30265 / 3 ** 0.5, abs=1e-4)
    assert row.cells["forgetting"].mean == pytest.approx(10)
    assert tables.cell_text(row, "average_accuracy") == "76.00 ± 2.48"
    assert tables.cell_text(row, "backward_transfer") == "−10.00 ± 0.00"


def test_other_protocols_are_refused_and_the_field_is_named(tmp_path):
    known(tmp_path, "codyra", 0, 70)
    known(tmp_path, "lora", 0, 71, fields={"test_batch_size": 200})
    with pytest.raises(UserError) as caught:
        compare(load_all(tmp_path))
    message = str(caught.value)
    assert "'test_batch_size' is 64 in codyra-s0-x-70 and 200 in lora-s0-x-71" in message and "weights" not in message
    mixed = compare(load_all(tmp_path), mix=True)
    assert len(mixed.groups) == 1 and "test_batch_size" in mixed.groups[0].notes[0]
    apart = compare(load_all(tmp_path), by="fingerprint")
    assert [len(g.rows) for g in apart.groups] == [1, 1]
    assert not any("Mixed" in note for group in apart.groups for note in group.notes)


def test_the_command_refuses_mixes_and_keeps_apart(tmp_path, capsys):
    known(tmp_path / "runs", "codyra", 0, 70)
    known(tmp_path / "runs", "lora", 0, 71, fields={"test_batch_size": 200})
    runs, page = str(tmp_path / "runs"), tmp_path / "page.html"
    assert cli.main(["compare", runs, "--html", str(page)]) == 2 and not page.exists()
    error = capsys.readouterr().err
    assert "'test_batch_size' is 64 in" in error and "--mix" in error and "--by fingerprint" in error
    assert cli.main(["compare", runs, "--html", str(page), "--mix"]) == 0
    assert "Mixed protocols" in capsys.readouterr().out and "Mixed protocols" in page.read_text()
    assert cli.main(["compare", runs, "--html", str(page), "--by", "fingerprint"]) == 0
    assert capsys.readouterr().out.count("Protocol ") == 2 and "Mixed protocols" not in page.read_text()


@pytest.mark.parametrize("field,value", [("weights", "cd"), ("preprocess", "0.5"), ("data", "x"), ("split", "5"),
                                         ("order_policy", "random"), ("reset", "each"), ("metrics", "2"),
                                         ("seed_policy", "y"), ("protocol_version", 2)])
def test_each_field_of_the_protocol_refuses(tmp_path, field, value):
    known(tmp_path, "a", 0, 70)
    known(tmp_path, "b", 0, 70, fields={field: value})
    with pytest.raises(UserError, match=f"'{field}' is"):
        compare(load_all(tmp_path))
    assert list(differing_fields(load_all(tmp_path))) == [field]


def test_scenarios_and_backbones_have_their_own_tables(tmp_path):
    records.write_learner(tmp_path, "codyra", 0)
    records.write_learner(tmp_path, "codyra", 0, scenario="split_glyphs")
    records.write_adapter(tmp_path, "tent", 0)
    groups = compare(load_all(tmp_path)).groups
    assert [g.title for g in groups] == ["digits_c · tiny_resnet", "split_digits · tiny_vit", "split_glyphs · tiny_vit"]
    assert groups[0].primary == "mean_error" and "average_accuracy" not in groups[0].metrics
    assert groups[1].primary == "average_accuracy" and "mean_error" not in groups[1].metrics


def test_order_of_rows_follows_the_direction_of_the_metric(tmp_path):
    records.write_suite(tmp_path, seeds=2, extra=False)
    stream, learn, _ = compare(load_all(tmp_path)).groups
    errors = [r.cells["mean_error"].mean for r in stream.rows]
    accuracies = [r.cells["average_accuracy"].mean for r in learn.rows]
    assert errors == sorted(errors) and accuracies == sorted(accuracies, reverse=True)
    assert stream.rows[-1].method == "source" and learn.rows[0].method == "joint"
    assert learn.rows[0].reference == "upper bound" and [r.method for r in learn.rows if r.best] == ["osft"]


def test_only_finished_runs_count_and_the_rest_is_counted_beside(tmp_path):
    known(tmp_path, "a", 0, 70)
    known(tmp_path, "a", 1, 20, status="failed", error="out of memory")
    records.write(tmp_path, "a-2", records.record(method="a", seed=2), done=False)
    records.write(tmp_path, "b-0", records.record(method="b", status="failed", error="no"))
    group = compare(load_all(tmp_path)).groups[0]
    assert [(r.method, r.n, r.failed, r.unfinished) for r in group.rows] == [("a", 1, 1, 1), ("b", 0, 1, 0)]
    assert group.rows[0].cells["average_accuracy"].mean == pytest.approx(75)
    assert tables.cell_text(group.rows[0], "average_accuracy") == "75.00"  # one run has no interval
    assert tables.cell_text(group.rows[1], "average_accuracy") == "–"
    assert group.rows[1].standing == ""


def test_repeats_count_once_the_newest(tmp_path):
    known(tmp_path, "a", 0, 70, started="2026-01-01T00:00:00+00:00")
    known(tmp_path, "a", 0, 80, started="2026-01-02T00:00:00+00:00")
    group = compare(load_all(tmp_path)).groups[0]
    assert group.rows[0].n == 1 and group.rows[0].cells["average_accuracy"].mean == pytest.approx(80)
    assert any("1 repeated run left out" in note for note in group.notes)


def test_class_orders_are_runs_of_their_own(tmp_path):
    for order in (0, 1):
        known(tmp_path, "a", 0, 70 + order, order=order)
    assert compare(load_all(tmp_path)).groups[0].rows[0].n == 2


def test_mixed_code_versions_are_said(tmp_path):
    known(tmp_path, "a", 0, 70, commit="aaaa")
    known(tmp_path, "b", 0, 71, commit="bbbb")
    assert any("Mixed code versions: aaaa, bbbb" in note for note in compare(load_all(tmp_path)).groups[0].notes)


@pytest.mark.parametrize("n,standing", [(3, "undecided"), (6, "behind")])
def test_few_pairs_are_undecided_and_six_can_tell(tmp_path, n, standing):
    for seed in range(n):
        known(tmp_path, "good", seed, 70 + seed / 10)
        known(tmp_path, "bad", seed, 50 + seed / 10)
    group = compare(load_all(tmp_path)).groups[0]
    assert [r.standing for r in group.rows] == ["best", standing]
    assert any("smallest possible p is 0.25" in note for note in group.notes) == (n == 3)


def test_equal_methods_are_tied(tmp_path):
    for seed in range(8):
        known(tmp_path, "a", seed, 70 + seed % 3)
        known(tmp_path, "b", seed, 71 - seed % 2)
    assert {r.standing for r in compare(load_all(tmp_path)).groups[0].rows} == {"best", "tied"}


def test_every_export_holds_the_same_numbers_as_the_page(tmp_path):
    """Cell by cell: each method's row of each table, in all three formats and in the page's data."""
    records.write_suite(tmp_path, seeds=3)
    comparison = compare(load_all(tmp_path))
    data = payload(comparison, "x")
    lines = list(csv.DictReader(io.StringIO(sheets.to_csv(comparison))))
    markdown, latex = sheets.to_markdown(comparison).split("### ")[1:], sheets.to_latex(comparison).split(r"\begin{table}")[1:]
    assert len(markdown) == len(latex) == len(comparison.groups)

    def cells(text: str, method: str, by: str) -> list[str]:
        (row,) = [parts for line in text.splitlines() if len(parts := [c.strip(" &") for c in line.strip("| \\").split(by)]) > 3
                  and any(c.replace("**", "").replace(r"\textbf{", "").rstrip("}") == method for c in parts[:2])]
        return [c.replace(r"$\pm$", "±").replace("$-$", "−").replace("--", "–") for c in row]

    for group, shown, md, tex in zip(comparison.groups, data["groups"], markdown, latex, strict=True):
        for row in group.rows:
            line = next(x for x in lines if x["method"] == row.method and x["scenario"] == group.scenario)
            page = next(r["cells"] for r in shown["rows"] if data["methods"][r["method"]]["name"] == row.method)
            texts = [f"{mean} ± {spread}" if spread else mean for mean, spread, *_ in (page[name] for name in group.metrics)]
            assert cells(md, row.method, " | ")[-len(texts):] == texts
            assert cells(tex, row.method, " & ")[-len(texts):] == texts
            for name, text in zip(group.metrics, texts, strict=True):
                unit = all_metrics()[name].unit.replace("%", "percent").replace(" ", "_")
                assert (line[f"{name}_{unit}"].replace("-", "−") or "–") == text.split(" ± ")[0]
    assert sheets.to_latex(comparison).count(r"\toprule") == sheets.to_latex(comparison).count(r"\bottomrule") == 3


def test_text_of_a_name_cannot_break_a_table(tmp_path):
    nasty = "a|b & c_d% \\x <script>{}"
    known(tmp_path, "x", 0, 70, label=nasty)
    known(tmp_path, "y", 0, 60, label="=cmd()")
    comparison = compare(load_all(tmp_path))
    assert r"a\|b & c_d% \\x &lt;script>" in sheets.to_markdown(comparison)
    assert r"a|b \& c\_d\% \textbackslash{}x $<$script$>$\{\}" in sheets.to_latex(comparison)
    assert "'=cmd()" in sheets.to_csv(comparison)
    out = Console(file=io.StringIO(), width=200)
    tables.print_tables(comparison, out)
    assert nasty in out.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_terminal_never_cuts_a_number(tmp_path, width):
    records.write_suite(tmp_path, seeds=2, extra=False)
    comparison = compare(load_all(tmp_path))
    out = Console(file=io.StringIO(), width=width)
    tables.print_tables(comparison, out)
    text = out.file.getvalue()
    assert tables.cell_text(comparison.groups[1].rows[0], "average_accuracy") in text and "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert ("Not shown in this width" in text) == (width < 200)


def test_export_by_ending(tmp_path):
    known(tmp_path / "runs", "a", 0, 70)
    comparison = compare(load_all(tmp_path / "runs"))
    for ending in ("csv", "md", "tex"):
        assert sheets.export(comparison, tmp_path / f"out/t.{ending}").read_text()
    with pytest.raises(UserError, match=r"\.docx"):
        sheets.export(comparison, tmp_path / "t.docx")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        sheets.export(comparison, tmp_path / "file" / "t.csv")


def test_nothing_to_compare():
    with pytest.raises(UserError, match="no run"):
        compare([])


def test_costs(tmp_path):
    run = load_all(records.write_learner(tmp_path, "lora", 0))[0]
    cost = run.record["cost"]
    assert value_of(run, "seconds") == cost["seconds"]["learn"] + cost["seconds"]["adapt"]
    assert value_of(run, "seconds_total") == cost["seconds"]["total"]
    assert value_of(run, "trainable") == cost["parameters"]["trainable"] / 1e3
    assert value_of(run, "peak_memory") == cost["peak_memory_bytes"] / 2 ** 20
    assert np.isnan(value_of(run, "mean_error"))


def test_500_runs_make_one_table(tmp_path):
    folder = records.write_learner(tmp_path, "codyra", 0)
    text = (folder / "run.json").read_text()
    for i in range(499):
        (tmp_path / f"run-{i}").mkdir()
        changed = re.sub(r'"seed": 0', f'"seed": {i % 25}', text.replace(folder.name, f"run-{i}"))
        changed = changed.replace('"label": "codyra"', f'"label": "method {i // 25}"')
        (tmp_path / f"run-{i}" / "run.json").write_text(changed)
        (tmp_path / f"run-{i}" / "DONE").touch()
    (group,) = compare(load_all(tmp_path)).groups
    assert len(group.rows) == 21 and sum(len(row.runs) for row in group.rows) == 500


def test_no_heavy_import():
    code = ("import sys, cl_bench.compare.comparison, cl_bench.compare.tables;"
            "print([m for m in ('torch', 'scipy', 'mlflow', 'plotly', 'rich', 'jinja2') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_deployed_run_has_both_halves(tmp_path):
    matrix = AccuracyMatrix.from_rates([[90, np.nan], [60, np.nan], [55, 80]], rows=["a", "stream", "b"], columns=["a", "b"],
                                       learned=[0, 2])
    records.write(tmp_path, "x", records.record("deploy", kind="deployed", matrix=matrix,
                                                stream=records.adapter_stream("tent", 0)))
    comparison = compare(load_all(tmp_path))
    group = comparison.groups[0]
    assert {"average_accuracy", "forgetting", "mean_error"} <= set(group.metrics) and group.primary == "average_accuracy"
    assert group.rows[0].cells["forgetting"].mean == pytest.approx(35)
    shown = payload(comparison, "x")["groups"][0]
    assert shown["learn"]["phases"] == ["a", "stream", "b"] and len(shown["stream"]["entries"]) == 30


def test_a_streams_clean_source_matrix_is_no_learning(tmp_path):
    run = load_all(records.write_adapter(tmp_path, "tent", 0))[0]
    assert run.matrix.columns == ("clean",) and "average_accuracy" not in run.metrics
    assert compare([run]).groups[0].primary == "mean_error"


def test_what_stands_in_a_protocol_only_where_it_differs_from_the_default_is_said_so(tmp_path):
    """Precision, layout, optimizers and compiling are no fields of a run that computes as by default."""
    known(tmp_path, "a", 0, 70)
    known(tmp_path, "b", 0, 70, fields={"compute.precision": "bf16-mixed"})
    runs = load_all(tmp_path)
    with pytest.raises(UserError, match=r"'compute.precision' is as by default in .* and 'bf16-mixed' in"):
        compare(runs)
    assert {g.apart for g in compare(runs, by="fingerprint").groups} == {
        "compute.precision as by default", "compute.precision 'bf16-mixed'"}

"""Tables that do not mislead: ailing runs, bounds, two protocols of one scenario, contended times."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import records
from rich.console import Console

from cl_bench.compare import sheets, tables
from cl_bench.compare.comparison import compare, reference_of
from cl_bench.compare.dashboard import render
from cl_bench.compare.dashboard.payload import payload
from cl_bench.compare.health import Flag, flags_of, overlapping
from cl_bench.numbers.chance import learned_anything
from cl_bench.numbers.matrix import AccuracyMatrix
from cl_bench.numbers.metrics import metrics_of
from cl_bench.records.results import Run, load_all

TWO = [{"name": "task 1", "classes": [0, 1], "train_size": 9}, {"name": "task 2", "classes": [2, 3], "train_size": 9}]
TESTS = [{"name": "task 1", "classes": [0, 1], "size": 1000}, {"name": "task 2", "classes": [2, 3], "size": 1000}]


def learner(folder: Path, method: str, seed: int, rates: list, **over) -> Path:
    """A run of two tasks of two classes each, answered among all classes seen so far."""
    matrix = AccuracyMatrix.from_rates(rates, size=1000)
    run = records.record(method=method, seed=seed, matrix=matrix, experiences=TWO, test_sets=TESTS,
                         fields={"answers": "seen"}, metrics=records.metrics_of_matrix(matrix), **over)
    return records.write(folder, f"{method}-{seed}", run)


GOOD, DIVERGED = [[95, np.nan], [70, 90]], [[0, np.nan], [0, 0]]


# -- nothing learned, nothing forgotten -------------------------------------------------------------------------------

@pytest.mark.parametrize("rates,answers,learned", [
    (GOOD, "seen", True), (DIVERGED, "seen", False),
    ([[50, np.nan], [0, 25]], "seen", False),  # guessing among 2, then among 4
    ([[50, np.nan], [0, 40]], "seen", True), ([[25, np.nan], [25, 25]], "all", False), ([[50, np.nan], [50, 50]], "all", True),
    ([[50, np.nan], [50, 50]], "task", False), ([[50, np.nan], [50, 60]], "task", True)])
def test_chance_is_what_guessing_among_the_answers_gives(rates, answers, learned):
    record = {"experiences": TWO, "test_sets": TESTS, "fingerprint": {"fields": {"answers": answers}}}
    assert learned_anything(AccuracyMatrix.from_rates(rates, size=1000), record) is learned


def test_a_record_that_does_not_say_is_asked_for_one_right_answer():
    assert learned_anything(AccuracyMatrix.from_rates([[1, np.nan], [0, 0]]), {})
    assert not learned_anything(AccuracyMatrix.from_rates(DIVERGED), {})
    assert learned_anything(AccuracyMatrix.empty(["a"], ["a"], [0]), {}), "nothing measured speaks against nothing"


def test_a_run_that_learned_nothing_records_no_forgetting():
    found = metrics_of(AccuracyMatrix.from_rates(DIVERGED), records.Stream(()), {"scenario": {"kind": "learn"}})
    assert found["average_accuracy"] == 0 and found["forgetting"] is None and found["backward_transfer"] is None


def test_a_diverged_run_does_not_forget_least(tmp_path):
    for seed in range(3):
        learner(tmp_path, "lora", seed, GOOD)
        learner(tmp_path, "ewc", seed, DIVERGED, warnings=["9 training losses of task 1 were not finite."])
        (folder,) = [f for f in tmp_path.iterdir() if f.name == f"ewc-{seed}"]
        text = (folder / "run.json").read_text()  # as older versions wrote it
        (folder / "run.json").write_text(text.replace('"forgetting": null', '"forgetting": 0.0'))
    comparison = compare(load_all(tmp_path))
    group = comparison.groups[0]
    rows = {row.method: row for row in group.rows}
    assert np.isnan(rows["ewc"].cells["forgetting"].mean) and tables.cell_text(rows["ewc"], "forgetting") == "–"
    assert rows["lora"].standings["forgetting"].word == "best" and rows["ewc"].standings["forgetting"].word == ""
    assert [flag.kind for flag in rows["ewc"].flags] == ["unlearned", "nonfinite"] and rows["lora"].flags == []
    assert group.warnings[0] == ("ewc: 3 of 3 runs answered by chance right after learning: there is nothing that they "
                                 "could forget.")
    out = Console(file=io.StringIO(), width=200)
    tables.print_tables(comparison, out)
    assert "! ewc: 3 of 3 runs had losses or answers that were not finite." in out.file.getvalue()
    assert "! ewc: 3 of 3" in sheets.to_markdown(comparison) and "ewc: 3 of 3" in sheets.to_latex(comparison)
    line = next(x for x in csv.DictReader(io.StringIO(sheets.to_csv(comparison))) if x["method"] == "ewc")
    assert "not finite" in line["warnings"] and line["forgetting_points"] == ""


def test_each_kind_of_trouble_is_counted():
    def run(key: int, **over) -> Run:
        return Run(Path("x"), {"id": str(key), **records.record(kind="stream", **over)}, True)

    assert flags_of([run(0), run(1)]) == []
    bad = [run(0, metrics={"collapsed_domains": 2.0}), run(1, metrics={"missed": 4.0, "nonfinite": 1.0}), run(2)]
    assert flags_of(bad) == [Flag("nonfinite", 1, 3), Flag("collapsed", 1, 3), Flag("missed", 1, 3)]
    assert Flag("missed", 1, 3).badge == "1 of 3 too slow" and Flag("missed", 3, 3).badge == "too slow"
    other = run(1)
    other.record["method"] = {**other.record["method"], "source_digest": "abc"}
    assert [flag.kind for flag in flags_of([run(0), other])] == ["mixed code"]
    counted = run(0)
    counted.record["cost"]["nonfinite_losses"] = 3
    assert [flag.kind for flag in flags_of([counted])] == ["nonfinite"]


# -- bounds are no competitors ----------------------------------------------------------------------------------------

def test_bounds_stand_beside_and_do_not_compete(tmp_path):
    for seed in range(7):
        learner(tmp_path, "joint", seed, [[99, np.nan], [98, 97]])
        learner(tmp_path, "osft", seed, [[95, np.nan], [80 + seed / 10, 90]])
        learner(tmp_path, "lora", seed, [[95, np.nan], [60 + seed / 10, 90]])
        learner(tmp_path, "mine", seed, [[95, np.nan], [0, 95]], label="mine")
    group = compare(load_all(tmp_path)).groups[0]
    assert [(row.method, row.standing) for row in group.rows] == [("joint", ""), ("osft", "best"), ("lora", "behind"),
                                                                   ("mine", "behind")]
    # Holm over the two tests among competitors, not over three: 2 / 2^7 twice.
    assert group.rows[2].standings["average_accuracy"].p == pytest.approx(2 * 2 / 2 ** 7)


def test_a_record_says_what_its_method_is_and_the_registry_knows_older_ones(tmp_path):
    def of(**method) -> str:
        record = records.record(method="finetune")
        record["method"].update(method)
        return reference_of(Run(Path("x"), {"id": "x", **record}, True))

    assert of() == "lower bound" and of(name="joint") == "upper bound" and of(name="source") == "no adaptation"
    assert of(reference="") == "" and of(name="somebodys") == "" and of(name="codyra") == ""


def test_a_subclass_of_a_bound_competes_unless_it_says_so():
    from cl_bench.command.config import named
    from cl_bench.registry import find

    Finetune = find("cl_bench.methods", "finetune")
    globals()["Mine"] = type("Mine", (Finetune,), {"__module__": __name__, "__qualname__": "Mine"})
    assert named({"method": {"class_path": f"{__name__}.Mine"}}, "method")["reference"] == ""
    assert named({"method": {"class_path": f"{Finetune.__module__}.Finetune"}}, "method")["reference"] == "lower bound"


# -- marks follow the column ------------------------------------------------------------------------------------------

def test_every_column_has_its_own_best(tmp_path):
    for seed in range(6):
        learner(tmp_path, "plastic", seed, [[95, np.nan], [70, 99 + seed / 100]])
        learner(tmp_path, "stable", seed, [[80, np.nan], [79, 60 + seed / 100]])
    rows = {row.method: row for row in compare(load_all(tmp_path)).groups[0].rows}
    assert rows["plastic"].standings["average_accuracy"].word == "best"
    assert rows["stable"].standings["forgetting"].word == "best" == rows["stable"].standings["forgetting_learned"].word
    assert rows["plastic"].standings["forgetting"].word == "behind"
    data = payload(compare(load_all(tmp_path)), "x")
    shown = {data["methods"][row["method"]]["name"]: row["standings"] for row in data["groups"][0]["rows"]}
    assert shown["stable"]["forgetting"] == ["best", None] and shown["plastic"]["forgetting"] == ["behind", 0.0312]


# -- two protocols of one scenario ------------------------------------------------------------------------------------

@pytest.fixture
def protocols(tmp_path):
    for seed in range(2):
        for method in ("lora", "osft", "ncm"):
            records.write_learner(tmp_path / "runs", method, seed)
        for method in ("lora", "osft"):
            run = records.write_learner(tmp_path / "runs" / "b", method, seed, fields={"test_batch_size": 200})
            text = (run / "run.json").read_text().replace(f'"id": "{run.name}"', f'"id": "b-{run.name}"')
            (run / "run.json").write_text(text)
            run.rename(run.parent / f"b-{run.name}")
    return compare(load_all(tmp_path / "runs"), by="fingerprint")


def test_tables_of_two_protocols_say_what_differs(protocols):
    assert sorted(g.title for g in protocols.groups) == ["split_digits · tiny_vit · test_batch_size 200",
                                                         "split_digits · tiny_vit · test_batch_size 64"]
    text = sheets.to_latex(protocols) + sheets.to_markdown(protocols)
    assert text.count("test_batch_size 200") == 1 and text.count(r"test\_batch\_size 200") == 1


def test_two_protocols_of_one_scenario_are_one_scenario_for_ranks(protocols, tmp_path):
    page = render(protocols, tmp_path / "page.html")
    assert page.stat().st_size > 1000
    (entry,) = payload(protocols, "x")["ranks"]
    assert entry["scenarios"] == ["split_digits · tiny_vit · test_batch_size 64"] and "ranks" not in entry
    assert entry["left_out"] == ["split_digits · tiny_vit · test_batch_size 200"]


# -- times ------------------------------------------------------------------------------------------------------------

def stamped(folder: Path, name: str, start: int, end: int, **environment) -> None:
    record = records.record(method=name, started=f"2026-01-01T10:00:{start:02d}+00:00",
                            finished=f"2026-01-01T10:00:{end:02d}+00:00")
    record["environment"].update(environment)
    records.write(folder, name, record)


def test_wall_times_of_runs_that_shared_a_machine_are_not_compared(tmp_path):
    for k, (start, end) in enumerate(((0, 10), (9, 20), (15, 30), (30, 40))):  # touching within a second is one after another
        stamped(tmp_path, f"m{k}", start, end)
    assert overlapping(load_all(tmp_path)) == 2
    group = compare(load_all(tmp_path)).groups[0]
    assert "2 runs went on at the same time" in group.times["wall"] and "busy" not in group.times
    assert group.times["wall"] in group.notes
    assert payload(compare(load_all(tmp_path)), "x")["groups"][0]["times"] == group.times


def test_times_of_different_machines_are_not_compared(tmp_path):
    stamped(tmp_path, "a", 0, 1)
    stamped(tmp_path, "b", 5, 6, device="cuda")
    group = compare(load_all(tmp_path)).groups[0]
    assert group.times["wall"] == group.times["busy"] and "cuda" in group.times["busy"]


# -- the dotted diagonal ----------------------------------------------------------------------------------------------

def test_below_the_diagonal_lies_exactly_what_was_lost():
    four = [[90, 0, 0, 0], [80, 60, 0, 0], [85, 72, 88, 0], [70, 75, 80, 86]]
    for rates in (four, [[90, 10, 5], [80, 85, 20], [85, 75, 95]]):
        m = AccuracyMatrix.from_rates(rates)
        assert m.stability() - m.plasticity(earlier=True) == pytest.approx(m.backward_transfer())
    assert m.plasticity() != m.plasticity(earlier=True)

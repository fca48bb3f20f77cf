"""Inference over test images and runs: closed forms, the parts that add up to the recorded numbers, verdicts."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import records

from cl_bench.command.config import parse
from cl_bench.compare.anatomy import anatomy
from cl_bench.compare.comparison import compare
from cl_bench.compare.dashboard.payload import payload
from cl_bench.compare.images import evidence, group_evidence, image_parts
from cl_bench.compare.verdict import command_of, verdict
from cl_bench.numbers.matrix import AccuracyMatrix
from cl_bench.numbers.statistics import holm, image_test, images, seeds_to_decide, sign_flip_test, t_interval
from cl_bench.numbers.stream_metrics import Stream, StreamEntry
from cl_bench.records.results import Run, load, load_all

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))


# -- the test itself --------------------------------------------------------------------------------------------------


def test_many_images_of_one_run_give_the_normal_interval():
    g = np.random.default_rng(0)
    x, strata = g.choice([-1.0, 0.0, 1.0], size=4000, p=[0.1, 0.7, 0.2]) / 40, np.repeat([0, 1], [1000, 3000])
    test = image_test(x, strata)
    variance = sum((strata == k).sum() * x[strata == k].var(ddof=1) for k in (0, 1))
    half = 1.95996 * np.sqrt(variance)
    assert test.mean == pytest.approx(x.sum())
    assert test.given == pytest.approx((x.sum() - half, x.sum() + half), abs=0.06 * half)
    assert np.isnan(test.new[0]) and np.isnan(test.p_new) and test.above > 0.99 and (test.runs, test.images) == (1, 4000)


def test_runs_whose_images_do_not_vary_give_students_interval():
    x = np.repeat([[1.0], [2.0], [4.5]], 50, axis=1) / 50
    test, student = image_test(x, np.zeros(50), draws=200_000), t_interval([1.0, 2.0, 4.5])
    assert test.given == pytest.approx((2.5, 2.5)) and test.from_runs == 1
    assert test.new == pytest.approx((student.low, student.high), rel=0.03)


def test_the_permutation_over_images_is_the_exact_one_for_few():
    x = np.array([[1.0, 1, 1, 1, -1, 1, 0, 0], [1.0, 0, 1, 1, -1, 1, 0, 1]])
    exact = sign_flip_test(x.mean(axis=0))
    assert image_test(x, np.zeros(8), draws=100_000).p_given == pytest.approx(exact, abs=0.005)
    assert image_test(np.zeros((2, 8)), np.zeros(8)).p_given == 1


def test_flipping_the_pair_mirrors_everything():
    x = np.random.default_rng(1).normal(0.01, 0.1, (3, 60))
    a, b = image_test(x, np.zeros(60)), image_test(-x, np.zeros(60))
    assert a.mean == -b.mean and a.p_given == pytest.approx(b.p_given, abs=0.03)
    assert a.given == pytest.approx((-b.given[1], -b.given[0]), abs=0.15)
    assert a.above == pytest.approx(1 - b.above, abs=0.03)


@pytest.mark.parametrize("parts,strata", [([[1.0, 2.0]], [0]), ([[np.nan]], [0]), ([[]], [])])
def test_parts_that_do_not_fit_are_refused(parts, strata):
    with pytest.raises(ValueError, match="image tests need"):
        image_test(parts, strata)


def test_it_covers_what_it_says():
    """200 of the experiments of benchmarks/image_inference.py; the committed table has 2,000 for each setting."""
    import image_inference as bench

    rng = np.random.default_rng(5)
    found = [bench.experiment(3, 0.4, 0.3, rng) for _ in range(200)]
    none = [bench.experiment(3, 0.4, 0.0, rng) for _ in range(200)]
    assert np.mean([f["given"] for f in found]) >= 0.90 and np.mean([f["new"] for f in found]) >= 0.93
    assert np.mean([f["plain"] for f in found]) < np.mean([f["new"] for f in found]), "plain resampling of 3 runs is too sure"
    assert np.mean([f["p_new"] for f in none]) <= 0.08


def test_the_committed_table_says_what_the_text_claims():
    text = (Path(__file__).resolve().parents[1] / "results" / "compare" / "image_inference.md").read_text()
    rows = [[float(c) for c in line.strip("| ").split("|")] for line in text.splitlines() if line.startswith("| 0.")]
    assert [(r[0], int(r[1])) for r in rows] == [(s, n) for s in (0.1, 0.4) for n in (3, 5, 10)]
    assert all(abs(r[2] - 95) <= 1 for r in rows), "given these runs: nominal within 1 point"
    assert all(r[3] >= 95 for r in rows) and all(r[7] <= 5 for r in rows)
    assert min(r[4] for r in rows) < 90


def test_seeds_to_decide_has_the_power_it_says():
    d = np.array([1.0, 3.0, 2.0])  # mean 2, standard deviation 1
    n = seeds_to_decide(d)
    assert n == 6 and seeds_to_decide(d / 100) == 6, "scale does not matter"
    wide = np.array([-3.0, 1.0, 5.0])  # mean 1, standard deviation 4: about (2.8 * 4)^2
    n = seeds_to_decide(wide)
    g = np.random.default_rng(0)
    seen = np.mean([t.low > 0 or t.high < 0 for t in (t_interval(g.normal(1, 4, n)) for _ in range(1500))])
    assert 120 < n < 135 and seen == pytest.approx(0.8, abs=0.04)
    assert seeds_to_decide([1.0]) is None and seeds_to_decide([1.0, -1.0]) is None
    assert seeds_to_decide([1.0, -0.99], most=50) == 51


# -- from records -----------------------------------------------------------------------------------------------------

SIZE, CLASSES = 40, ((0, 1), (2, 3), (4, 5))


def answered(folder: Path, method: str, seed: int, keep: float, order: int | None = None, truth: bool = True) -> Path:
    """Three tasks; what was learned is lost by and by. Predictions and truths are kept as the engine keeps them."""
    g = np.random.default_rng([seed, round(100 * keep)])
    groups = CLASSES if order is None else CLASSES[order:] + CLASSES[:order]
    names = [f"step {k + 1}" for k in range(3)]
    arrays, correct, total = {}, np.zeros((3, 3), int), np.zeros((3, 3), int)
    for j, classes in enumerate(groups):
        labels = np.array([classes[k % 2] for k in range(SIZE)], np.int32)
        arrays[f"truth/step {j + 1}"] = labels
        for i in range(j, 3):
            right = g.random(SIZE) < 0.95 * keep ** (i - j)
            arrays[f"step {i + 1}/step {j + 1}"] = np.where(right, labels, -1).astype(np.int32)
            correct[i, j], total[i, j] = right.sum(), SIZE
    matrix = AccuracyMatrix(tuple(names), tuple(names), correct, total, (0, 1, 2))
    name = f"{method}-{seed}-{order}"
    records.write(folder, name, records.record(method=method, seed=seed, order=order, matrix=matrix,
                                               metrics=records.metrics_of_matrix(matrix)))
    np.savez_compressed(folder / name / "arrays.npz", **{k: v for k, v in arrays.items() if truth or "truth" not in k})
    return folder / name


def test_the_parts_add_up_to_the_recorded_numbers(tmp_path):
    run = load(answered(tmp_path, "lora", 0, 0.7))
    for metric in ("average_accuracy", "forgetting", "forgetting_learned"):
        parts = image_parts(run, metric)
        assert parts.values.sum() == pytest.approx(run.metrics[metric])
        assert len(parts.values) == SIZE * (3 if metric == "average_accuracy" else 2)
    assert image_parts(load(answered(tmp_path, "x", 0, 0.7, truth=False)), "forgetting") is None


def test_a_record_whose_arrays_say_otherwise_is_no_evidence(tmp_path):
    folder = answered(tmp_path, "lora", 0, 0.7)
    text = (folder / "run.json").read_text()
    value = load(folder).record["metrics"]["average_accuracy"]
    (folder / "run.json").write_text(text.replace(f'"average_accuracy": {value}', '"average_accuracy": 1.5'))
    assert image_parts(load(folder), "average_accuracy") is None
    (folder / "arrays.npz").write_bytes(b"PK damaged")
    assert image_parts(load(folder), "forgetting") is None


def test_the_stream_is_the_mean_over_its_domains(tmp_path):
    g, entries, arrays = np.random.default_rng(0), [], {}
    for k, (name, n) in enumerate((("fog", 30), ("snow", 50))):
        labels, right = g.integers(0, 4, n).astype(np.int32), g.random(n) < 0.6
        arrays |= {f"truth/stream/{k}/{name}": labels, f"stream/{k}/{name}": np.where(right, labels, -1).astype(np.int32)}
        entries.append(StreamEntry(name, name, 1, n, int(right.sum())))
    stream = Stream(tuple(entries))
    folder = records.write(tmp_path, "r", records.record(kind="stream", stream=stream,
                                                         metrics=records.metrics_of_stream(stream)))
    np.savez_compressed(folder / "arrays.npz", **arrays)
    parts = image_parts(load(folder), "mean_error")
    assert parts.values.sum() == pytest.approx(stream.mean_error()) and len(set(parts.frame.strata)) == 2


@pytest.fixture
def suite(tmp_path):
    for seed in range(3):
        answered(tmp_path, "good", seed, 0.97)
        answered(tmp_path, "bad", seed, 0.6)
    return compare(load_all(tmp_path))


def test_three_seeds_tell_methods_apart_by_their_images(suite):
    group = suite.groups[0]
    rows = {row.method: row for row in group.rows}
    found = evidence(rows["good"], rows["bad"], "average_accuracy").test
    difference = rows["good"].cells["average_accuracy"].mean - rows["bad"].cells["average_accuracy"].mean
    assert found.mean == pytest.approx(difference) and found.given[0] > 0 and found.p_given < 0.01
    assert found.new[0] < found.given[0] and found.new[1] > found.given[1]
    assert rows["bad"].standing == "undecided", "by runs alone nothing can be told"


def test_class_orders_share_their_images(tmp_path):
    """The same images, grouped into other test sets: resampled within their class, and still one set of images."""
    for order in (0, 1, 2):
        answered(tmp_path, "good", order, 0.97, order)
        answered(tmp_path, "bad", order, 0.6, order)
    rows = {row.method: row for row in compare(load_all(tmp_path)).groups[0].rows}
    found = evidence(rows["good"], rows["bad"], "average_accuracy").test
    assert (found.runs, found.images) == (3, 3 * SIZE) and found.given[0] > 0
    lost = evidence(rows["good"], rows["bad"], "forgetting").test
    assert lost.images == 3 * 2 * SIZE, "which images can be forgotten differs by order: each run has its own"


def test_the_page_holds_the_same_tests(suite):
    data = payload(suite, "x")
    shown = data["groups"][0]["images"]
    found = group_evidence(suite.groups[0], "forgetting")
    (row,) = shown["forgetting"]
    test = found[0].test
    assert [data["methods"][k]["name"] for k in row[:2]] == [found[0].a, found[0].b]
    assert row[2] == pytest.approx(test.mean, abs=1e-3) and row[5] == pytest.approx(holm([test.p_given])[0], abs=1e-3)
    assert row[3:5] == pytest.approx(list(test.given), abs=1e-3) and row[6:8] == pytest.approx(list(test.new), abs=1e-3)


# -- verdicts ---------------------------------------------------------------------------------------------------------


def test_the_verdict_names_the_best_with_its_evidence_and_its_price(suite):
    first, second, *rest = verdict(suite.groups[0])
    rows = {row.method: row for row in suite.groups[0].rows}
    assert first.text.startswith(f"Highest average accuracy: good, {rows['good'].cells['average_accuracy'].mean:.2f} %; ")
    assert "more than bad, 95 % [" in first.text and "P(better) = " in first.text and "(120 images × 3 runs)" in first.text
    assert second.text.startswith("Lowest forgetting: good") and "less than bad" in second.text
    assert all("Run" not in s.text for s in rest), "new runs would not change their order"


def test_the_verdict_says_how_many_seeds_would_decide(tmp_path):
    for seed, (a, b) in enumerate(((70, 60), (74, 75), (73, 61))):
        for method, last in (("a", a), ("b", b)):
            matrix = AccuracyMatrix.from_rates([[90, np.nan], [80, last]])
            records.write(tmp_path, f"{method}{seed}", records.record(method=method, seed=seed, matrix=matrix))
    found = verdict(compare(load_all(tmp_path)).groups[0])
    needed = seeds_to_decide(np.array([10, -1, 12]) / 2)
    assert "which 3 pairs of runs cannot tell from chance" in found[0].text
    said = next(s for s in found if s.text.startswith("Run "))
    assert said.text == f"Run {needed - 3} more seeds of a and b to decide between them in average accuracy:"
    assert said.command.startswith("for seed in 3 4 5") and said.command.count("cl-bench run") == 2
    assert "--seed $seed" in said.command


def test_the_verdict_does_not_let_a_bound_or_a_single_method_win(tmp_path):
    for seed in range(2):
        answered(tmp_path, "joint", seed, 0.99)
        answered(tmp_path, "lora", seed, 0.9)
    assert verdict(compare(load_all(tmp_path)).groups[0]) == []


def test_the_command_of_a_run_repeats_its_config():
    argv = ["--scenario", "recurring", "--scenario.of", "digits_c", "--scenario.of.severity", "3", "--scenario.visits", "2",
            "--method", "eata", "--method.lr", "0.002", "--seed", "3", "--threads", "1"]
    config = parse(argv)
    made = Run(Path("x"), {"id": "x", **records.record(config=config), "scenario": {"name": "recurring"}, "seed": 3}, True)
    assert parse(shlex.split(command_of(made))[2:]) == config
    assert command_of(made, seed="$seed").endswith("--seed $seed")


# -- anatomy ----------------------------------------------------------------------------------------------------------


def test_lost_images_are_followed_to_the_classes_that_took_them(tmp_path):
    """Ten images of task 1: four become a class of task 2 at once, one of these comes back, two go to task 3, one is confused
    within its own task."""
    truth = np.array([0, 1] * 5, np.int32)
    at2, at3 = truth.copy(), truth.copy()
    at2[:4] = [2, 3, 2, 3]
    at3[:4] = [2, 3, 2, truth[3]]
    at3[4:6], at3[6] = [4, 5], 1 - truth[6]
    second = np.array([2, 3] * 5, np.int32)
    matrix = AccuracyMatrix(("s1", "s2", "s3"), ("s1", "s2", "s3"), [[10, 0, 0], [6, 10, 0], [4, 10, 0]],
                            [[10, 0, 0], [10, 10, 0], [10, 10, 0]], (0, 1, 2))
    classes = [{"name": f"s{k + 1}", "classes": list(c), "train_size": 1} for k, c in enumerate(CLASSES)]
    folder = records.write(tmp_path, "r", records.record(matrix=matrix, experiences=classes))
    kept = {"truth/s1": truth, "s1/s1": truth, "s2/s1": at2, "s3/s1": at3, "truth/s2": second, "s2/s2": second, "s3/s2": second}
    np.savez(folder / "arrays.npz", **kept)
    found = anatomy([load(folder)])
    assert found.to[0].tolist() == [10, 30, 20] and found.to[1].tolist() == [0, 0, 0] and np.isnan(found.to[2]).all()
    assert found.after[0, 1:].tolist() == [40, 30] and found.back[0, 1:].tolist() == [0, 10]
    lost = found.after[0, 1:].sum() - found.back[0, 1:].sum()
    assert lost == pytest.approx(100 - matrix.percent[2, 0]), "lost minus regained is what the matrix says"
    shown = payload(compare([load(folder)]), "x")["groups"][0]["anatomy"]
    assert shown["experiences"] == ["s1", "s2", "s3"] and shown["methods"][0]["to"][0] == [10, 30, 20]


def test_experiences_that_share_classes_have_no_anatomy(tmp_path):
    folder = answered(tmp_path, "lora", 0, 0.7)
    assert anatomy([load(folder)]) is None, "the record does not say which experience teaches what"
    same = [{"name": f"s{k}", "classes": [0, 1], "train_size": 1} for k in range(3)]
    records.write(tmp_path, "r", records.record(experiences=same))
    assert anatomy([load(tmp_path / "r")]) is None


@pytest.mark.parametrize("of", [130, 2000])
def test_many_images_are_resampled_by_their_first_three_cumulants(of, monkeypatch) -> None:
    """Six test sets in which a is better on a tenth of the images and worse on a hundredth: skewed, and not normal yet."""
    rng = np.random.default_rng(of)
    values = rng.choice([0.0, 1.0, -1.0], 6 * of, p=[0.89, 0.1, 0.01])
    strata = np.repeat(np.arange(6), of)
    monkeypatch.setattr(images, "SMOOTH_FROM", 50)
    smooth = images.image_test(values, strata, draws=40_000)
    monkeypatch.setattr(images, "SMOOTH_FROM", np.inf)
    drawn = images.image_test(values, strata, draws=40_000)
    width = (drawn.given[1] - drawn.given[0]) / 3.92
    assert np.allclose(smooth.given, drawn.given, atol=0.05 * width, rtol=0), "ends to a twentieth of the standard deviation"
    assert abs(smooth.p_given - drawn.p_given) < 0.01 and abs(smooth.above - drawn.above) < 0.01


def test_small_test_sets_share_their_draws_and_stay_apart() -> None:
    """Two test sets of one size: the sum's variance is the sum of theirs, not that of one drawn twice."""
    rng = np.random.default_rng(5)
    one = rng.normal(size=40)
    alone, both = images.image_test(one, np.zeros(40)), images.image_test(np.tile(one, 2), np.repeat([0, 1], 40))
    ratio = (both.given[1] - both.given[0]) / (alone.given[1] - alone.given[0])
    assert ratio == pytest.approx(np.sqrt(2), abs=0.06)

"""The accuracy matrix: published vectors, other libraries as oracles, and properties that hold for every matrix."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cl_bench.numbers.matrix import AccuracyMatrix, Stream
from cl_bench.numbers.metrics import metrics_of

FOUR = [[90, 0, 0, 0], [80, 60, 0, 0], [85, 72, 88, 0], [70, 75, 80, 86]]
THREE = [[90, 10, 5], [80, 85, 20], [85, 75, 95]]
NAN = float("nan")


def matrix(rows: object, **kw: object) -> AccuracyMatrix:
    return AccuracyMatrix.from_rates(rows, **kw)  # type: ignore[arg-type]


def all_of(m: AccuracyMatrix) -> dict[str, float | None]:
    return metrics_of(m, Stream(()), {"scenario": {"kind": "learn"}})


def test_the_four_definitions_of_forgetting_on_the_architecture_vector():
    m = matrix(FOUR)
    values = [round(m.forgetting(since), 2) for since in ("best", "learned", "best_any", "libcontinual")]
    assert values == [8.33, 4.33, 9.33, 1.67]


def test_what_the_row_itself_taught_has_forgotten_nothing_yet():
    for since in ("best", "learned", "best_any"):
        assert np.isnan(matrix(FOUR).forgetting_per_column(since)).tolist() == [False, False, False, True], since
        assert np.isnan(matrix(FOUR).forgetting_per_column(since, 1)).tolist() == [False, True, True, True], since


def test_a_mean_over_cells_of_which_one_is_not_measured_is_not_measured():
    m = matrix([[90, NAN, NAN], [80, 60, NAN], [85, NAN, 88]])
    assert np.isnan([m.last(), m.average_lower_triangle(), m.forgetting(), m.backward_transfer()]).all()
    assert m.plasticity() == pytest.approx(238 / 3, abs=1e-3), "the cells that it takes were measured"


def test_worked_example_accuracy():
    m = matrix(THREE)
    assert m.incremental_accuracies() == pytest.approx([90, 82.5, 85])
    assert m.average_accuracy() == pytest.approx(85)
    assert m.average_incremental_accuracy() == pytest.approx(85.8333, abs=1e-4)
    assert m.last() == pytest.approx(85)
    assert m.average_all() == pytest.approx(60.5556, abs=1e-4)
    assert m.average_lower_triangle() == pytest.approx(85)
    assert m.plasticity() == pytest.approx(90)
    assert m.stability() == pytest.approx(80)
    assert m.intransigence([92, 90, 96]) == pytest.approx(2.6667, abs=1e-4)


def test_worked_example_pooled_accuracy_weighs_images():
    total = np.array([[200, 200, 100]] * 3)
    m = AccuracyMatrix(("a", "b", "c"), ("a", "b", "c"), (np.array(THREE) * total / 100).round(), total)
    assert m.average_accuracy(pooled=True) == pytest.approx(83.0)


def test_worked_example_forgetting_and_transfer():
    m = matrix(THREE)
    assert m.forgetting("best") == pytest.approx(7.5)
    assert m.forgetting("learned") == pytest.approx(7.5)
    assert m.forgetting("libcontinual") == pytest.approx(2.5)
    assert m.backward_transfer() == pytest.approx(-7.5)
    assert m.backward_transfer("positive") == pytest.approx(0)
    assert m.backward_transfer("all_pairs") == pytest.approx(-8.3333, abs=1e-4)
    assert m.backward_transfer("libcontinual") == pytest.approx(-1.6667, abs=1e-4)
    assert m.forward_transfer([10, 12, 8]) == pytest.approx(5.0)
    assert m.forward_transfer(0) == pytest.approx(15.0)
    assert m.transfer("cells") == pytest.approx(11.6667, abs=1e-4)
    assert m.transfer() == pytest.approx(11.25)
    assert m.transfer("rows") == pytest.approx(13.75)


def test_second_worked_example_separates_the_variants():
    m = matrix([[70, 0], [80, 90]])
    assert m.backward_transfer() == pytest.approx(10)
    assert m.forgetting("best") == pytest.approx(-10)
    assert m.forgetting("best_any") == pytest.approx(0)
    assert m.forgetting("learned") == pytest.approx(-10)


ZERO_SHOT = [10, 12, 8]


def test_a_row_before_learning_is_a_baseline_and_enters_no_other_number():
    """Average: 60.56 as without the row, not the 47.92 of all twelve cells."""
    m = AccuracyMatrix.from_rates([ZERO_SHOT, *THREE], rows=["before", "a", "b", "c"], columns=["a", "b", "c"], before=True)
    plain = matrix(THREE)
    assert m.forward_transfer() == pytest.approx(5.0) and np.isnan(plain.forward_transfer())
    assert m.average_all() == pytest.approx(60.5556, abs=1e-4)
    mine, theirs = all_of(m), all_of(plain)
    asked = {"forward_transfer", "zero_shot_accuracy", "zero_shot_change"}  # what is said of the row itself
    assert mine["zero_shot_accuracy"] == pytest.approx(10) and theirs["zero_shot_accuracy"] is None
    assert {k: v for k, v in mine.items() if k not in asked} == {k: v for k, v in theirs.items() if k not in asked}
    assert m.average_lower_triangle() == plain.average_lower_triangle()
    assert [m.transfer(kind) for kind in ("columns", "rows", "cells")] == [
        plain.transfer(kind) for kind in ("columns", "rows", "cells")]
    assert np.isnan(m.incremental_accuracies()[0]) and np.isnan(m.forgetting_curve()[1])
    assert m.incremental_accuracies()[1:] == pytest.approx(plain.incremental_accuracies())


def test_the_four_definitions_of_forgetting_do_not_see_the_row_before_learning():
    """A zero-shot accuracy that is higher than all later ones is not what was forgotten."""
    m = AccuracyMatrix.from_rates([[99, 99, 99, 99], *FOUR], before=True)
    values = [round(m.forgetting(since), 2) for since in ("best", "learned", "best_any", "libcontinual")]
    assert values == [8.33, 4.33, 9.33, 1.67]


def test_a_row_before_learning_alone_is_no_accuracy_of_what_was_learned():
    m = AccuracyMatrix.from_rates([[50, 60]], learned=[None, None], before=True)
    found = all_of(m)
    assert found.pop("zero_shot_accuracy") == pytest.approx(55) and all(value is None for value in found.values())
    shared = AccuracyMatrix.from_rates([[10], [50], [60]], learned=[None], before=True)
    assert shared.average_incremental_accuracy() == pytest.approx(55) and shared.anytime() == pytest.approx(55)
    with pytest.raises(ValueError, match="row of learning"):
        AccuracyMatrix.from_rates([[50], [60]], learned=[0], before=True)
    assert AccuracyMatrix.from_json(json.loads(json.dumps(shared.to_json()))).before


UNDEFINED = ("forgetting", "forgetting_learned", "forgetting_best_any", "forgetting_libcontinual", "backward_transfer",
             "forward_transfer", "transfer", "plasticity", "stability")


def test_one_common_test_set_counts_as_seen_from_the_start_and_forgets_nothing():
    m = AccuracyMatrix.from_rates([[50], [60], [55]], rows=["a", "b", "c"], columns=["all domains"], learned=[None])
    assert m.average_accuracy() == pytest.approx(55)
    assert m.average_incremental_accuracy() == pytest.approx(55)
    assert [all_of(m)[name] for name in UNDEFINED] == [None] * len(UNDEFINED)


def test_names_and_counts_that_coincide_say_nothing():
    """A shared test set called like the first experience; as many shared test sets as experiences."""
    counts = [[50, 40], [60, 45]]
    for columns in (["a", "z"], ["a", "b"], ["x", "y"]):
        total = np.full((2, 2), 100)
        m = AccuracyMatrix(("a", "b"), tuple(columns), np.array(counts), total)
        assert m.learned == (None, None) and [all_of(m)[name] for name in UNDEFINED] == [None] * len(UNDEFINED)
        assert AccuracyMatrix.from_json(json.loads(json.dumps(m.to_json()))) == m
    with pytest.raises(ValueError, match="which row taught"):
        AccuracyMatrix.from_rates([[50], [60], [70]])


def test_older_records_are_read_by_names():
    """They did not say what taught a column; the engine called a test set like its experience."""
    data = {"rows": ["a", "stream", "b"], "columns": ["b", "shared", "a"], "correct": [[None, 5, 9], [None, 5, 8], [7, 6, 5]],
            "total": [[None, 10, 10], [None, 10, 10], [10, 10, 10]]}
    m = AccuracyMatrix.from_json(data)
    assert m.learned == (2, None, 0) and m.forgetting() == pytest.approx(40)
    assert AccuracyMatrix.from_json({**data, "rows": ["a", "a", "b"]}).learned == (None, None, None)


def test_rows_after_a_stream_count_as_last_but_not_as_a_learning_step():
    m = AccuracyMatrix.from_rates([[90, 0], [80, 85], [60, 70]], rows=["a", "b", "after stream"], columns=["a", "b"],
                                  learned=[0, 1])
    assert m.average_accuracy() == pytest.approx(65)
    assert m.average_incremental_accuracy() == pytest.approx((90 + 82.5) / 2)
    assert m.forgetting() == pytest.approx(((90 - 60) + (85 - 70)) / 2)


def test_learning_again_after_a_stream():
    rows = ["a", "stream 1", "b", "stream 2"]
    m = AccuracyMatrix.from_rates([[90, 0], [85, 0], [80, 85], [60, 70]], rows=rows, columns=["a", "b"], learned=[0, 2])
    assert m.plasticity() == pytest.approx(87.5)
    assert m.average_incremental_accuracy() == pytest.approx((90 + 82.5) / 2)
    assert m.anytime() == pytest.approx(np.mean([90, 85, 82.5, 65]))


def test_not_measured_is_nan_never_zero():
    m = matrix([[90, NAN], [NAN, 80]])
    assert np.isnan(m[0, 1]) and np.isnan(m.average_accuracy())
    assert all_of(m)["average_accuracy"] is None and all_of(m)["forgetting"] is None
    assert m.plasticity() == pytest.approx(85)


def test_so_far_is_what_an_unfinished_run_has():
    m = matrix([[90, NAN, NAN], [80, 70, NAN], [NAN, NAN, NAN]]).so_far()
    assert m.rows == ("task 1", "task 2") and m.columns == ("task 1", "task 2")
    assert m.average_accuracy() == pytest.approx(75) and m.forgetting() == pytest.approx(10)
    nothing = AccuracyMatrix.empty(["a"], ["a"]).so_far()
    assert nothing.rows == () and all(v is None for v in all_of(nothing).values())


def test_forgetting_curve_and_columns():
    m = matrix(FOUR)
    assert np.isnan(m.forgetting_curve()[0])
    assert m.forgetting_curve()[1:] == pytest.approx([10, (5 - 12) / 2, 25 / 3])
    assert m.forgetting_per_column()[:3] == pytest.approx([20, -3, 8]) and np.isnan(m.forgetting_per_column()[3])


def test_json_round_trip_keeps_counts_and_nulls():
    m = matrix([[90, NAN], [80, 70]])
    data = json.loads(json.dumps(m.to_json()))
    assert data["correct"][0][1] is None and data["total"][0][1] is None and data["learned"] == [0, 1]
    assert AccuracyMatrix.from_json(data) == m
    other = AccuracyMatrix(("a", "b"), ("x", "y"), [[1, 1], [1, 1]], [[2, 2], [2, 2]], (1, 0))
    assert AccuracyMatrix.from_json(json.loads(json.dumps(other.to_json()))).learned == (1, 0)


@pytest.mark.parametrize("correct,total", [([[3]], [[2]]), ([[-1]], [[2]]), ([[1, 1]], [[2, 2]])])
def test_impossible_counts_are_refused(correct, total):
    with pytest.raises(ValueError):
        AccuracyMatrix(("a",), ("a",), np.array(correct), np.array(total))


def test_the_matrix_cannot_be_changed_in_place():
    m = matrix(THREE)
    with pytest.raises(ValueError):
        m.correct[0, 0] = 1
    assert m.with_cell(0, 0, 1, 2)[0, 0] == 50 and m[0, 0] == 90


def test_with_unknown_definition():
    with pytest.raises(ValueError, match="since"):
        matrix(THREE).forgetting("worst")


def test_avalanche_is_an_oracle_for_forgetting_since_learned():
    avalanche = pytest.importorskip("avalanche.evaluation.metrics.forgetting_bwt")
    for rows in (FOUR, THREE):
        metric = avalanche.Forgetting()
        for t, row in enumerate(rows):
            for j in range(t + 1):
                metric.update(j, row[j], initial=(j == t))
        lost = list(metric.result().values())
        assert len(lost) == len(rows) - 1
        assert matrix(rows).forgetting("learned") == pytest.approx(np.mean(lost))


def test_avalanche_is_an_oracle_for_forward_transfer():
    avalanche = pytest.importorskip("avalanche.evaluation.metrics.forward_transfer")
    metric, base = avalanche.ForwardTransfer(), [10, 12, 8]
    for j, b in enumerate(base):
        metric.update(j, b, initial=True)
    for j in range(1, 3):
        metric.update(j, THREE[j - 1][j])
    values = list(metric.result().values())
    assert len(values) == 2
    assert matrix(THREE).forward_transfer(base) == pytest.approx(np.mean(values))


SQUARE = st.integers(2, 6).flatmap(lambda t: st.tuples(
    hnp.arrays(np.int64, (t, t), elements=st.integers(0, 50)), st.integers(50, 90)))


def square(drawn: tuple[np.ndarray, int]) -> AccuracyMatrix:
    correct, size = drawn
    names = tuple(f"t{i}" for i in range(len(correct)))
    return AccuracyMatrix(names, names, correct, np.full_like(correct, size), tuple(range(len(correct))))


@settings(max_examples=60, deadline=None)
@given(SQUARE)
def test_orders_between_definitions(drawn):
    m = square(drawn)
    assert m.forgetting("best") >= m.forgetting("learned") - 1e-9
    assert m.forgetting("best_any") >= max(m.forgetting("best"), 0) - 1e-9
    assert m.backward_transfer() == pytest.approx(-m.forgetting("learned"))
    assert m.backward_transfer("positive") >= max(m.backward_transfer(), 0) - 1e-9


@settings(max_examples=60, deadline=None)
@given(SQUARE, st.randoms(use_true_random=False))
def test_permuting_the_columns_changes_no_metric(drawn, random):
    m = square(drawn)
    order = list(range(len(m.columns)))
    random.shuffle(order)
    p = AccuracyMatrix(m.rows, tuple(m.columns[j] for j in order), m.correct[:, order], m.total[:, order], tuple(order))
    for name, value in all_of(m).items():
        assert all_of(p)[name] == (value if value is None else pytest.approx(value)), name


@settings(max_examples=40, deadline=None)
@given(SQUARE, st.integers(0, 5), st.integers(0, 5))
def test_adding_counts_pools_and_an_unmeasured_cell_adds_nothing(drawn, i, j):
    m = square(drawn)
    both = m + m
    assert np.allclose(both.percent, m.percent) and (both.total == 2 * m.total).all()
    assert m + AccuracyMatrix.empty(m.rows, m.columns, m.learned) == m
    hole = m.with_cell(i % len(m.rows), j % len(m.columns), 0, 0)
    assert np.isnan(hole.percent).sum() == 1 and np.isnan((hole + hole).percent).sum() == 1


@settings(max_examples=40, deadline=None)
@given(SQUARE)
def test_equal_test_sets_make_pooled_equal_to_plain(drawn):
    m = square(drawn)
    assert m.incremental_accuracies() == pytest.approx(m.incremental_accuracies(pooled=True))


def test_adding_other_rows_is_refused():
    with pytest.raises(ValueError, match="same rows"):
        matrix(THREE) + matrix(FOUR)


@given(st.data())
def test_forgetting_is_its_definition_cell_by_cell(data: st.DataObject) -> None:
    """Chaudhry et al. 2018 and its variants, written down as loops: any rows, missing cells, columns that no row taught."""
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    values = data.draw(hnp.arrays(float, (rows, columns), elements=st.integers(0, 20).map(float) | st.just(math.nan)))
    learned = data.draw(st.lists(st.none() | st.integers(0, rows - 1), min_size=columns, max_size=columns))
    m = AccuracyMatrix.from_rates(values, size=100, learned=learned)
    r = m.percent
    for since in ("best", "learned", "best_any"):
        for k in (*range(rows), -1):
            row, wanted = k % rows, []
            for j, d in enumerate(learned):
                if d is None or d >= row:
                    wanted.append(math.nan)
                    continue
                past = {"best": range(d, row), "learned": [d], "best_any": range(d, row + 1)}[since]
                there = [r[i, j] for i in past if not math.isnan(r[i, j])]
                wanted.append(max(there) - r[row, j] if there else math.nan)
            assert m.forgetting_per_column(since, k).tolist() == pytest.approx(wanted, nan_ok=True)

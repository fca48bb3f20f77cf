"""Test-time streams: errors, calibration, collapse, drift."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_bench.numbers.matrix import AccuracyMatrix, CalibrationBins, Stream, StreamEntry, collapsed, top_class_share
from cl_bench.numbers.metrics import metrics_of


def all_of(s: Stream) -> dict[str, float | None]:
    return metrics_of(AccuracyMatrix.empty((), ()), s, {"scenario": {"kind": "stream"}})


def stream(*entries: tuple[str, int, int, int]) -> Stream:
    return Stream(tuple(StreamEntry(f"{d} {v}", d, v, total, correct) for d, v, total, correct in entries))


def test_mean_and_pooled_error_differ_with_unequal_domains():
    s = stream(("fog", 1, 100, 50), ("snow", 1, 300, 300))
    assert s.mean_error() == pytest.approx(25) and s.pooled_error() == pytest.approx(12.5)


def test_visits_and_drift():
    s = stream(("fog", 1, 100, 80), ("snow", 1, 100, 70), ("fog", 2, 100, 60), ("snow", 2, 100, 60))
    assert s.visit_errors() == pytest.approx({1: 25.0, 2: 40.0})
    assert s.drift() == pytest.approx(15)
    assert np.isnan(stream(("fog", 1, 10, 5)).drift())
    assert all_of(stream(("fog", 1, 10, 5)))["drift"] is None


def test_empty_stream_and_empty_domain():
    assert all_of(Stream(())) == {} and np.isnan(Stream(()).pooled_error())
    assert all_of(stream(("fog", 1, 0, 0)))["mean_error"] is None


def test_collapse_needs_one_class_and_several_present():
    assert top_class_share([95, 5, 0]) == pytest.approx(0.95)
    assert collapsed(0.95) and not collapsed(0.949) and not collapsed(1.0, classes_present=1)
    assert np.isnan(top_class_share([0, 0])) and not collapsed(float("nan"))


def test_json_round_trip_and_keys_of_a_newer_writer():
    entry = StreamEntry("fog 1", "fog", 1, 10, 7, ece=3.5, top_class_share=0.2, seconds=0.1)
    data = json.loads(json.dumps(Stream((entry,)).to_json()))
    assert Stream.from_json(data).entries[0] == entry
    assert Stream.from_json([{**data[0], "of_the_future": 1}]).entries[0] == entry


def test_ece_of_a_perfectly_confident_wrong_model_is_100():
    assert CalibrationBins.of([1.0, 1.0], [False, False]).ece() == pytest.approx(100)
    assert CalibrationBins.of([1.0, 1.0], [True, True]).ece() == pytest.approx(0)
    assert np.isnan(CalibrationBins.zeros().ece())


def test_a_confidence_on_an_edge_lies_in_the_bin_that_it_ends():
    """Guo et al. (2017): bin m is ((m - 1) / M, m / M]."""
    edges = CalibrationBins.of([0.2, 0.4, 0.6, 0.8, 1.0], [True] * 5)
    assert np.flatnonzero(edges.count).tolist() == [2, 5, 8, 11, 14]


@pytest.mark.parametrize("bad", [[1.5], [-0.1], [float("nan")]])
def test_confidences_that_are_not_probabilities_are_refused(bad):
    with pytest.raises(ValueError):
        CalibrationBins.of(bad, [True])


def test_torchmetrics_is_an_oracle_for_ece():
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.full(7, 0.4), size=500)
    labels = generator.integers(0, 7, 500)
    theirs = metrics.multiclass_calibration_error(torch.tensor(probabilities), torch.tensor(labels), 7, n_bins=15)
    ours = CalibrationBins.of(probabilities.max(1), probabilities.argmax(1) == labels).ece()
    assert ours == pytest.approx(100 * float(theirs), abs=1e-3)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=60), st.integers(1, 59))
def test_bins_of_two_halves_add_up(pairs, cut):
    p, right = map(np.array, zip(*pairs, strict=True))
    cut = min(cut, len(p) - 1)
    added = CalibrationBins.of(p[:cut], right[:cut]) + CalibrationBins.of(p[cut:], right[cut:])
    whole = CalibrationBins.of(p, right)
    assert added.ece() == pytest.approx(whole.ece()) and (added.count == whole.count).all()
    assert CalibrationBins.from_json(json.loads(json.dumps(added.to_json()))).ece() == pytest.approx(added.ece())


def test_stream_ece_is_pooled_from_bins_and_bounded_by_the_mean_over_domains():
    low, high = CalibrationBins.of([0.6] * 10, [True] * 10), CalibrationBins.of([0.6] * 10, [False] * 10)
    def entry(name: str, bins: CalibrationBins, keep: bool) -> StreamEntry:
        return StreamEntry(name, name, 1, 10, int(bins.correct.sum()), ece=bins.ece(),
                           bins=bins.to_json() if keep else None)
    pooled = Stream((entry("a", low, True), entry("b", high, True))).ece()
    mean = Stream((entry("a", low, False), entry("b", high, False))).ece()
    assert pooled == pytest.approx(10) and mean == pytest.approx(50)

"""Choosing without labels: what is chosen, what is refused, and how far it falls short of the oracle."""

from __future__ import annotations

import math

import pytest
import scipy.stats

from cl_bench.label_free import scorers as s

ACCURACIES = {"good": 80.0, "weak": 60.0, "collapsed": 25.0}


def test_a_collapsed_model_flatters_and_is_not_chosen_where_it_is_refused():
    scores = {"good": -0.5, "weak": -1.0, "collapsed": -0.01}
    fooled = s.choose("prediction_entropy", scores, ACCURACIES)
    assert fooled.chosen == "collapsed" and fooled.gap == pytest.approx(55)
    gated = s.choose("prediction_entropy", scores, ACCURACIES, refused=("collapsed",))
    assert gated.chosen == "good" and gated.refused == ("collapsed",) and gated.gap == 0
    assert "refused as collapsed: collapsed" in str(gated) and "gap 0.00 points" in str(gated)


def test_diversity_is_half_of_the_sources():
    source = {"marginal_entropy": 2.0}
    assert s.is_diverse({"marginal_entropy": 1.0}, source) and not s.is_diverse({"marginal_entropy": 0.99}, source)


def test_gap_and_rank_correlation():
    scores, accuracies = {"a": 0.4, "b": 0.6, "c": 0.8, "d": 0.8}, {"a": 50.0, "b": 90.0, "c": 70.0, "d": 20.0}
    found = s.choose("mano", scores, accuracies)
    assert (found.chosen, found.oracle) == ("c", "b") and found.gap == pytest.approx(20)
    assert found.spearman == pytest.approx(scipy.stats.spearmanr(list(scores.values()), list(accuracies.values())).statistic)


def test_without_accuracies_there_is_a_choice_but_no_gap():
    found = s.choose("mano", {"a": 0.8, "b": 0.1}, {})
    assert found.chosen == "a" and math.isnan(found.gap) and "oracle" not in str(found)


def test_a_score_that_is_not_finite_is_never_chosen():
    assert s.choose("mano", {"a": math.nan, "b": -math.inf, "c": 0.1}, {"a": 99.0, "c": 50.0}).chosen == "c"


def test_everything_refused_keeps_the_source():
    found = s.choose("mano", {"a": 1.0}, {"a": 25.0}, refused=("a",))
    assert found.chosen is None and "keep the source" in str(found) and math.isnan(found.gap)

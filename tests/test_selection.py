"""Label-free model selection: known values, oracles, and that a collapsed model is never chosen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from cl_bench.label_free import scorers as s

RNG = np.random.default_rng(0)


def predictions(confidence: float, n: int = 60, k: int = 4) -> np.ndarray:
    """Every class as often, ``confidence`` on the predicted one."""
    p = np.full((n, k), (1 - confidence) / (k - 1))
    p[np.arange(n), np.arange(n) % k] = confidence
    return p


COLLAPSED = np.tile([0.997, 0.001, 0.001, 0.001], (60, 1))


def test_entropy_of_uniform_and_certain_predictions():
    assert s.prediction_entropy(np.full((3, 4), 0.25)) == pytest.approx(-math.log(4))
    assert s.prediction_entropy(np.eye(4)) == pytest.approx(0)
    p = RNG.dirichlet(np.ones(5), 20)
    assert s.prediction_entropy(p) == pytest.approx(-scipy.stats.entropy(p, axis=1).mean())


def test_information_maximisation_is_mutual_information():
    assert s.information_maximisation(np.eye(4)) == pytest.approx(math.log(4))
    assert s.information_maximisation(COLLAPSED) == pytest.approx(0)
    assert s.information_maximisation(np.full((3, 4), 0.25)) == pytest.approx(0)


def test_soft_neighbourhood_density_by_hand():
    p = RNG.dirichlet(np.ones(3), 6)
    unit = p / np.linalg.norm(p, axis=1, keepdims=True)
    expected = []
    for i in range(6):
        weights = np.array([np.exp(unit[i] @ unit[j] / 0.05) for j in range(6) if j != i])
        expected.append(scipy.stats.entropy(weights / weights.sum()))
    assert s.soft_neighbourhood_density(p) == pytest.approx(np.mean(expected))
    with pytest.raises(ValueError, match="two images"):
        s.soft_neighbourhood_density([[1.0, 0.0]])


def test_mano_by_hand_in_both_branches():
    z = np.array([[1.0, 0.0]])
    taylor = np.array([2.5, 1.0]) / 3.5
    assert s.mano(z) == pytest.approx(((taylor ** 4).mean()) ** 0.25)
    z = np.array([[40.0, 0.0]])  # -mean log softmax is 20 > 5
    assert s.mano(z) == pytest.approx(0.5 ** 0.25)


def test_mixval_averages_pairs_within_and_across_classes():
    first, second = np.arange(4), np.array([1, 0, 2, 0])
    predicted = np.array([0, 0, 1, 1])
    # pairs: (0,0) (0,0) (1,1) within; (1,0) across
    assert s.mixval(predicted, np.array([0, 1, 1, 0]), first, second) == pytest.approx((2 / 3 + 0) / 2)
    a, b = s.mixval_pairs(predicted, seed=1)
    assert sorted(b) == list(range(4)) and (s.mixval_pairs(predicted, seed=1)[1] == b).all()
    with pytest.raises(ValueError, match="pairs"):
        s.mixval(predicted, predicted[:2], a, b)


@pytest.mark.parametrize("method", ["logistic", "kde"])
def test_importance_weights_find_the_shift(method):
    source, target = RNG.normal(0, 1, (400, 2)), RNG.normal([0.8, 0], 1, (400, 2))
    w = s.importance_weights(source, target, method)
    truth = np.exp(0.8 * source[:, 0])  # the ratio of the two normals, up to a constant
    assert scipy.stats.spearmanr(w, truth).statistic > 0.8 and w.mean() == pytest.approx(1)
    same = s.importance_weights(source, RNG.normal(0, 1, (400, 2)), method)
    assert s.effective_sample_size(same) > s.effective_sample_size(w)


def test_logistic_weights_are_sklearns():
    linear = pytest.importorskip("sklearn.linear_model")
    source, target = RNG.normal(0, 1, (80, 3)), RNG.normal(0.5, 1, (60, 3))
    both = np.concatenate([source, target])
    x = (both - both.mean(0)) / both.std(0)
    model = linear.LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(x, np.r_[np.zeros(80), np.ones(60)])
    p = model.predict_proba(x[:80])
    expected = 80 / 60 * p[:, 1] / p[:, 0]
    assert s.importance_weights(source, target, clip=100) == pytest.approx(expected / expected.mean(), rel=1e-4)


def test_weighted_scores_estimate_the_target():
    source = RNG.normal(0, 1, (4000, 1))
    target = RNG.normal(0.7, 1, (4000, 1))
    correct = source[:, 0] < 0.5  # right only on the left: the target lies to the right
    truth = (target[:, 0] < 0.5).mean()
    w = s.importance_weights(source, target, clip=100)
    assert abs(s.importance_weighted(correct, w) - truth) < 0.05 < abs(correct.mean() - truth)
    assert s.deep_embedded_validation(1.0 - correct, w) == pytest.approx(-(1 - truth), abs=0.06)


def test_dev_without_variance_is_the_plain_mean():
    assert s.deep_embedded_validation([1.0, 3.0], [1.0, 1.0]) == pytest.approx(-2)


@pytest.mark.parametrize("bad", [np.ones(3), np.zeros((0, 2)), [[0.5, 0.6]], [[np.nan, 1]], [[-0.5, 1.5]]])
def test_what_is_no_probability_is_refused(bad):
    with pytest.raises(ValueError):
        s.prediction_entropy(bad)


def test_a_collapsed_model_flatters_entropy_and_is_refused():
    candidates = {"good": s.Candidate(predictions(0.8), accuracy=80.0), "weak": s.Candidate(predictions(0.5), accuracy=60.0),
                  "collapsed": s.Candidate(COLLAPSED, accuracy=25.0)}
    fooled = s.select(candidates, "prediction_entropy")
    assert fooled.chosen == "collapsed" and fooled.gap == pytest.approx(55)
    gated = s.select(candidates, "prediction_entropy", source_probabilities=predictions(0.5))
    assert gated.chosen == "good" and gated.refused == ("collapsed",) and gated.gap == 0
    assert "refused as collapsed: collapsed" in str(gated) and "gap 0.00 points" in str(gated)
    assert s.select(candidates, "information_maximisation").chosen == "good"


def test_gap_and_rank_correlation():
    candidates = {str(c): s.Candidate(predictions(c), accuracy=100 * a) for c, a in ((0.4, 0.5), (0.6, 0.9), (0.8, 0.7))}
    found = s.select(candidates)
    assert (found.chosen, found.oracle) == ("0.8", "0.6") and found.gap == pytest.approx(20)
    assert found.spearman == pytest.approx(scipy.stats.spearmanr(list(found.scores.values()), [50, 90, 70]).statistic)


def test_without_accuracies_there_is_a_choice_but_no_gap():
    found = s.select({"a": s.Candidate(predictions(0.8))})
    assert found.chosen == "a" and math.isnan(found.gap) and "oracle" not in str(found)


def test_everything_collapsed_keeps_the_source():
    found = s.select({"a": s.Candidate(COLLAPSED, accuracy=25.0)}, source_probabilities=predictions(0.5))
    assert found.chosen is None and "keep the source" in str(found)


def test_wrong_use():
    with pytest.raises(ValueError, match="no candidate"):
        s.select({})
    with pytest.raises(ValueError, match="choose from"):
        s.select({"a": s.Candidate(predictions(0.5))}, "best")
    with pytest.raises(ValueError, match="logits"):
        s.select({"a": s.Candidate(predictions(0.5))}, "mano")
    assert s.select({"a": s.Candidate(predictions(0.5), logits=np.log(predictions(0.5)))}, "mano").chosen == "a"

"""Statistics against scipy, statsmodels and published worked examples (Demšar 2006)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_bench.numbers import statistics as s

# Demšar 2006, table 6: AUC of C4.5, C4.5+m, C4.5+cf, C4.5+m+cf on 14 data sets. The paper ranks "voting" by digits that
# it does not print (C4.5+cf before C4.5+m+cf), hence .9751.
DEMSAR = np.array([
    [.763, .768, .771, .798], [.599, .591, .590, .569], [.954, .971, .968, .967], [.628, .661, .654, .657],
    [.882, .888, .886, .898], [.936, .931, .916, .931], [.661, .668, .609, .685], [.583, .583, .563, .625],
    [.775, .838, .866, .875], [1.0, 1.0, 1.0, 1.0], [.940, .962, .965, .962], [.619, .666, .614, .669],
    [.972, .981, .9751, .975], [.957, .978, .946, .970]])


def test_demsar_ranks_friedman_and_critical_difference():
    test = s.friedman(DEMSAR)
    assert test.ranks == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    # The paper does not correct for ties: 9.28 and F = 3.69; the correction makes both a little larger.
    n, k = DEMSAR.shape
    plain = 12 * n / (k * (k + 1)) * ((test.ranks ** 2).sum() - k * (k + 1) ** 2 / 4)
    assert plain == pytest.approx(9.28, abs=5e-3)
    assert (n - 1) * plain / (n * (k - 1) - plain) == pytest.approx(3.69, abs=5e-3)
    assert test.chi_square > plain
    assert test.critical_difference == pytest.approx(1.25, abs=5e-3)


def test_friedman_is_scipys_with_ties():
    ours, theirs = s.friedman(DEMSAR), scipy.stats.friedmanchisquare(*DEMSAR.T)
    assert ours.chi_square == pytest.approx(theirs.statistic) and ours.p == pytest.approx(theirs.pvalue)


def test_critical_values_of_demsars_table_5():
    table = [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]
    ours = [s.nemenyi_critical_difference(k, 1) / math.sqrt(k * (k + 1) / 6) for k in range(2, 11)]
    assert ours == pytest.approx(table, abs=1.5e-3)


def test_nemenyi_p_values_are_scipys_studentised_range():
    ranks = s.friedman(DEMSAR).ranks
    p = s.nemenyi_p_values(ranks, 14)
    z = abs(ranks[0] - ranks[3]) / math.sqrt(4 * 5 / (6 * 14)) * math.sqrt(2)
    assert p[0, 3] == pytest.approx(scipy.stats.studentized_range.sf(z, 4, np.inf), abs=1e-6)
    assert (p == p.T).all() and (np.diag(p) == 1).all()


def test_friedman_refuses_holes_and_survives_all_ties():
    with pytest.raises(ValueError):
        s.friedman([[1, 2], [1, float("nan")]])
    with pytest.raises(ValueError):
        s.friedman([[1, 2]])
    assert s.friedman([[1, 1], [2, 2]]).p == 1


def test_lower_is_better_reverses_ranks():
    assert s.average_ranks([[3, 1, 2]], higher_is_better=False).tolist() == [[3, 1, 2]]
    assert s.average_ranks([[3, 1, 3]]).tolist() == [[1.5, 3, 1.5]]


def test_cliques_are_maximal_and_may_overlap():
    assert s.cliques([1.0, 2.0, 3.0, 9.0], 1.2) == [(0, 1), (1, 2)]
    assert s.cliques([3.0, 1.0, 2.0], 5) == [(1, 2, 0)]
    assert s.cliques([1, 5], 1) == []


@pytest.mark.parametrize("n", [3, 5, 8, 12])
def test_sign_flip_is_scipys_exact_permutation(n):
    d = np.random.default_rng(n).normal(0.5, 1, n)
    theirs = scipy.stats.permutation_test((d,), lambda x, axis: x.mean(axis=axis), permutation_type="samples",
                                          n_resamples=np.inf, vectorized=True)
    assert s.sign_flip_test(d) == pytest.approx(theirs.pvalue)


def test_sign_flip_sampled_agrees_with_enumerated(monkeypatch):
    d = np.random.default_rng(1).normal(0.4, 1, 15)
    exact = s.sign_flip_test(d)
    monkeypatch.setattr("cl_bench.numbers.statistics.paired.EXACT_UP_TO", 5)
    assert s.sign_flip_test(d) == pytest.approx(exact, abs=0.01)
    assert s.sign_flip_test(d) == s.sign_flip_test(d)


@pytest.mark.parametrize("n", [4, 9, 16, 30, 50])
def test_wilcoxon_is_scipys_exact(n):
    d = np.random.default_rng(n).normal(0.5, 1, n)
    assert s.wilcoxon_test(d) == pytest.approx(scipy.stats.wilcoxon(d, method="exact").pvalue)


@pytest.mark.parametrize("d", [(1, 1, 2, -1, 3, 3, 2), (1, -1, 2, 2, -3, 4, 4, 4), (-1, -1, -1, 2, 3, 4, 5, 6)])
def test_wilcoxon_with_ties_is_the_permutation_null(d):
    theirs = scipy.stats.wilcoxon(d, method=scipy.stats.PermutationMethod(n_resamples=np.inf))
    assert s.wilcoxon_test(d) == pytest.approx(theirs.pvalue)


def test_no_p_value_below_what_n_can_give():
    assert s.smallest_p(3) == 0.25 and s.smallest_p(6) == 0.03125 and s.smallest_p(0) == 1
    for n in range(1, 9):
        d = np.arange(1.0, n + 1)
        assert s.sign_flip_test(d) == pytest.approx(s.smallest_p(n))
        assert s.wilcoxon_test(d) == pytest.approx(s.smallest_p(n))
    assert s.sign_flip_test(np.arange(1.0, 40)) >= s.smallest_p(39)
    assert s.sign_flip_test([0, 0]) == 1 and s.sign_flip_test([]) == 1 and s.wilcoxon_test([0.0]) == 1


def test_holm_is_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = [0.01, 0.04, 0.03, 0.005, 0.6]
    assert s.holm(p) == pytest.approx(multitest.multipletests(p, method="holm")[1])
    with_hole = s.holm([0.01, float("nan"), 0.04])
    assert with_hole[0] == pytest.approx(0.02) and math.isnan(with_hole[1]) and with_hole[2] == pytest.approx(0.04)
    assert s.holm([]) == []


def test_t_interval_is_scipys():
    x = [70.1, 72.5, 69.9, 71.0]
    ours, theirs = s.t_interval(x), scipy.stats.ttest_1samp(x, 0).confidence_interval()
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    assert ours.n == 4 and ours.std == pytest.approx(np.std(x, ddof=1))
    assert ours.half_width == pytest.approx(theirs.high - ours.mean)


def test_bands_are_intervals_per_cell_with_holes():
    x = np.random.default_rng(0).normal(50, 3, (4, 2, 3))
    x[0, 1, 2] = x[:3, 0, 0] = np.nan
    x[:, 0, 1] = np.nan
    mean, low, high = s.t_bands(x)
    for i, j in np.ndindex(2, 3):
        one = s.t_interval(x[:, i, j])
        assert (mean[i, j], low[i, j], high[i, j]) == pytest.approx((one.mean, one.low, one.high), nan_ok=True)


def test_intervals_of_one_run_and_none():
    for interval in (s.t_interval, s.bca_interval):
        one = interval([5.0])
        assert one.mean == 5 and math.isnan(one.low) and math.isnan(one.std) and one.n == 1
        none = interval([float("nan")])
        assert math.isnan(none.mean) and none.n == 0
        assert (interval([2, 2, 2]).low, interval([2, 2, 2]).high) == (2, 2)


def test_bca_is_scipys():
    x = np.random.default_rng(0).gamma(2, 2, 25)
    ours = s.bca_interval(x, resamples=40_000)
    theirs = scipy.stats.bootstrap((x,), np.mean, method="BCa", n_resamples=40_000, rng=np.random.default_rng(1))
    assert (ours.low, ours.high) == pytest.approx((theirs.confidence_interval.low, theirs.confidence_interval.high),
                                                  abs=0.04)
    assert s.bca_interval(x) == s.bca_interval(x)
    equal = s.bca_interval(np.array([0.3, 0.1 + 0.2, 0.3, 0.3]))  # equal but for the last bit
    assert equal.low == equal.high == equal.mean


def test_cliffs_delta():
    assert s.cliffs_delta([3, 4], [1, 2]) == 1 and s.cliffs_delta([1, 2], [1, 2]) == 0
    assert s.cliffs_delta([1, 2, 3], [2, 2, 5]) == pytest.approx((1 + 1 - 1 - 1 - 1 - 1 - 1) / 9)
    u = scipy.stats.mannwhitneyu([1, 2, 3], [2, 2, 5]).statistic
    assert s.cliffs_delta([1, 2, 3], [2, 2, 5]) == pytest.approx(2 * u / 9 - 1)
    assert [s.cliffs_magnitude(d) for d in (0.1, -0.2, 0.4, -0.9)] == ["negligible", "small", "medium", "large"]
    assert math.isnan(s.cliffs_delta([], [1]))


def test_pairing_takes_common_keys_only():
    a = {(0, None): 1.0, (1, None): 2.0, (2, None): float("nan"), (4, None): 3.0}
    b = {(1, None): 5.0, (2, None): 1.0, (3, None): 1.0, (4, None): float("nan")}
    x, y = s.pair(a, b)
    assert x.tolist() == [2] and y.tolist() == [5]
    test = s.compare_pair(a, b)
    assert test.n == 1 and test.p_sign_flip == 1 and not test.can_show
    assert math.isnan(s.compare_pair(a, {(9, None): 1.0}).p_sign_flip)


def test_three_seeds_can_never_separate_and_ten_can():
    def values(shift: float, n: int) -> dict[tuple[int, None], float]:
        return {(i, None): 50 + shift + 0.01 * i for i in range(n)}
    best, p = s.indistinguishable_from_best({"a": values(30, 3), "b": values(0, 3)})
    assert best == "a" and p["b"] == 0.25
    best, p = s.indistinguishable_from_best({"a": values(30, 10), "b": values(0, 10)}, higher_is_better=False)
    assert best == "b" and p["a"] == pytest.approx(2 / 1024)
    assert s.indistinguishable_from_best({"a": {}}) == (None, {})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=10))
def test_tests_are_symmetric_and_bounded(d):
    for test in (s.sign_flip_test, s.wilcoxon_test):
        p = test(d)
        assert p == pytest.approx(test([-v for v in d]))
        assert s.smallest_p(sum(v != 0 for v in d)) - 1e-12 <= p <= 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_and_keeps_the_order(p):
    adjusted = s.holm(p)
    assert all(a >= b - 1e-12 for a, b in zip(adjusted, p, strict=True)) and max(adjusted) <= 1
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= -1e-12).all()

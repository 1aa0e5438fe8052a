"""Intervals, tests and estimators against closed forms, scipy, brute force and hand-computed numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from ahf_cli.report import statistics
from ahf_cli.report.statistics.student import student_cdf, student_quantile

X = np.array([0.4, 0.9, 0.5, 2.3, 0.7, 2.3, 1.1])
Y = np.array([0.6, 0.5, 1.9, 2.3, 0.8])


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("df", [1, 2, 3, 9, 69, 500])
def test_students_distribution_is_scipys(df: int) -> None:
    for p in (0.001, 0.3, 0.975, 0.9999):
        assert student_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-9)
    for t in (-40.0, -1.0, 0.0, 2.5):
        assert student_cdf(t, df) == pytest.approx(stats.t.cdf(t, df), rel=1e-9, abs=1e-12)
    assert math.isnan(student_quantile(0.975, 0)) and math.isnan(student_quantile(1, 3))


def test_the_interval_of_a_mean_is_scipys() -> None:
    theirs = stats.ttest_1samp(X, 0).confidence_interval(0.95)
    ours = statistics.mean_interval([*X, math.nan])
    assert ours == pytest.approx((X.mean(), theirs.low, theirs.high), rel=1e-9)


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0, 2.0]])
def test_no_interval_of_a_mean_or_iqm_without_two_different_values(values: list[float]) -> None:
    for found in (statistics.mean_interval(values), statistics.iqm_interval(values, rng())):
        assert math.isnan(found.low) and math.isnan(found.high)
        assert not found.excludes(-5)


def test_the_interval_of_a_median_takes_scipys_ranks() -> None:
    for n in (6, 7, 20, 70):
        x = np.sort(rng().normal(size=n))
        theirs = stats.quantile_test(x, q=0, p=0.5).confidence_interval(0.95)
        _, low, high = statistics.median_interval(x)
        assert (low, high) == (theirs.low, theirs.high)
    assert math.isnan(statistics.median_interval(range(5)).low)
    never = statistics.median_interval([1, 2, 3, 4, *[math.inf] * 6])
    assert never.estimate == math.inf == never.high and never.low == 2


def test_the_interquartile_mean_is_scipys_trimmed_mean_for_whole_quarters() -> None:
    x = rng().normal(size=(12, 3))
    np.testing.assert_allclose(statistics.interquartile_mean(x), stats.trim_mean(x, 0.25), rtol=1e-12)
    # n = 5: 0.75 · x_(1) + x_(2) + 0.75 · x_(3) over 2.5
    assert float(statistics.interquartile_mean([9.0, 1, 2, 4, 0])) == pytest.approx((0.75 + 2 + 3) / 2.5)


def test_the_bootstrap_interval_is_scipys() -> None:
    x = np.concatenate([X, Y])
    theirs = stats.bootstrap((x,), np.mean, method="percentile", n_resamples=20_000, rng=1)
    ours = statistics.bootstrap_interval(x, lambda x: x.mean(axis=0), rng(), resamples=20_000)
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.05)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.05)


@pytest.mark.parametrize(("x", "n"), [(0, 4), (2, 4), (7, 70), (20, 20)])
def test_the_interval_of_a_rate_is_scipys(x: int, n: int) -> None:
    theirs = stats.binomtest(x, n).proportion_ci(method="wilson")
    assert statistics.wilson_interval(x, n) == pytest.approx((x / n, theirs.low, theirs.high), abs=1e-12)


def test_the_interval_of_a_difference_of_rates_is_newcombes() -> None:
    # Newcombe 1998, table II, column (a) 56/70 − 48/80 and (h) 10/10 − 0/10 of method 10
    assert statistics.rate_difference(56, 70, 48, 80) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert statistics.rate_difference(10, 10, 0, 10) == pytest.approx((1, 0.6075, 1), abs=5e-5)
    assert math.isnan(statistics.rate_difference(0, 0, 1, 2).estimate)
    with pytest.raises(ValueError, match=r"successes must be in \[0, n = 3\], got 4"):
        statistics.wilson_interval(4, 3)


@pytest.mark.parametrize("k", [1, 2, 3, 6, 7])
def test_the_expected_best_of_k_is_the_mean_over_all_subsets(k: int) -> None:
    brute = np.mean([min(s) for s in itertools.combinations(X, k)])
    assert statistics.expected_best(X, k) == pytest.approx(brute, rel=1e-13)
    assert statistics.best_weights(7, k).sum() == pytest.approx(1)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_probability_of_beating_is_the_share_over_all_pairs_of_subsets(k: int) -> None:
    bests = [[min(s) for s in itertools.combinations(z, k)] for z in (X, Y)]
    brute = np.mean([(a < b) + 0.5 * (a == b) for a, b in itertools.product(*bests)])
    assert statistics.probability_of_beating(X, Y, k) == pytest.approx(brute, rel=1e-12)
    back = statistics.probability_of_beating(Y, X, k)
    assert statistics.probability_of_beating(X, Y, k) + back == pytest.approx(1)


def test_leaving_out_one_value_gives_the_jackknife_error() -> None:
    brute = np.array([statistics.expected_best(np.delete(X, i), 2) for i in range(len(X))])
    error = math.sqrt((len(X) - 1) / len(X) * np.sum((brute - brute.mean()) ** 2))
    from ahf_cli.report.statistics.best_of import _jackknife_errors

    ordered = np.sort(X)[:, None] + [0.0, 5.0]
    assert _jackknife_errors(ordered, 2) == pytest.approx([error, error])


def test_too_few_trials_for_a_budget_have_an_estimate_and_no_interval() -> None:
    assert math.isnan(statistics.expected_best_interval(X, 4, rng()).low)
    assert math.isnan(statistics.expected_best_interval([1.0] * 8, 2, rng()).low)
    assert math.isnan(statistics.probability_of_beating_interval(X, Y, 2).low)
    assert statistics.probability_of_beating_interval(range(8), range(10, 18), 2) == pytest.approx(
        (1, math.nan, math.nan), nan_ok=True
    )
    with pytest.raises(ValueError, match=r"k must be in \[1, n = 7\], got 8"):
        statistics.expected_best(X, 8)


def test_the_best_so_far_passes_over_missing_values() -> None:
    assert statistics.best_so_far([3, math.nan, 2, 5]).tolist() == [3, 3, 2, 2]


@pytest.mark.parametrize("n", [5, 10])
def test_the_permutation_test_is_scipys(n: int) -> None:
    a, b = rng().normal(size=(2, n)) + [[0.5], [0]]
    theirs = stats.permutation_test((a, b), lambda x, y: np.mean(x - y), permutation_type="samples")
    assert statistics.paired_permutation_test(a, b, rng()) == pytest.approx(theirs.pvalue, rel=1e-12)


def test_many_pairs_are_permuted_at_random() -> None:
    a = rng().normal(size=30)
    p = statistics.paired_permutation_test(a, np.zeros(30), rng())
    assert p == pytest.approx(stats.ttest_1samp(a, 0).pvalue, abs=0.03)
    assert statistics.paired_permutation_test(a + 9, np.zeros(30), rng()) == pytest.approx(1 / 20_001)
    assert math.isnan(statistics.paired_permutation_test([math.nan], [0.0], rng()))


def test_cliffs_delta_counts_pairs_and_follows_the_u_statistic() -> None:
    u = stats.mannwhitneyu(X, Y).statistic
    delta = statistics.cliffs_delta(X, Y)
    assert delta.estimate == pytest.approx(2 * u / (len(X) * len(Y)) - 1)
    assert -1 <= delta.low < delta.estimate < delta.high <= 1
    swapped = statistics.cliffs_delta(Y, X)
    assert swapped == pytest.approx((-delta.estimate, -delta.high, -delta.low))
    apart = statistics.cliffs_delta(range(10), range(20, 30))
    z2 = stats.norm.ppf(0.975) ** 2
    assert apart == pytest.approx((-1, -1, -(10 - z2) / (10 + z2)))
    assert math.isnan(statistics.cliffs_delta([1.0], Y).low)
    assert math.isnan(statistics.cliffs_delta([], Y).estimate)


def test_holm_steps_down() -> None:
    # by hand: 4·0.01, 3·0.02, 2·0.03 (not below 3·0.02), 0.5
    assert statistics.holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert statistics.holm([0.9, math.nan, 0.8]) == pytest.approx([1, math.nan, 1], nan_ok=True)


def test_the_distribution_counts_what_is_never_met() -> None:
    found = statistics.empirical_distribution([1, 1, 3, math.inf])
    half = math.sqrt(math.log(40) / 8)
    assert found.value.tolist() == [1, 3] and found.share.tolist() == [0.5, 0.75]
    assert found.low.tolist() == pytest.approx([0, 0.75 - half]) and found.high.tolist() == [1, 1]
    assert np.isnan(statistics.empirical_distribution([1.0]).low).all()
    assert len(statistics.empirical_distribution([]).value) == 0


def test_the_rank_correlation_is_scipys() -> None:
    x, y = [1, 2, 2, 5, 9], [3, 1, 4, 4, 8]
    assert statistics.rank_correlation(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert math.isnan(statistics.rank_correlation([1, 1, 1], [1, 2, 3]))


def test_a_target_is_met_at_the_cost_of_the_first_evaluation_beyond_it() -> None:
    accuracy = [[0.1, 0.8, 0.7], [0.1, 0.5, math.nan], [math.nan, math.nan, math.nan]]
    cost = [[0.0, 5, 10], [0, 7, math.nan], [0, math.nan, math.nan]]
    assert statistics.first_crossing(accuracy, cost, 0.8).tolist() == [5, math.inf, math.inf]
    assert statistics.first_crossing(accuracy, cost, 0.3, higher=False).tolist() == [0, 0, math.inf]


def test_at_a_cost_the_last_evaluation_counts_and_a_trial_that_ended_before_does_not() -> None:
    values = [[1.0, 2, 3], [1, 2, math.nan]]
    cost = [[0.0, 5, 10], [0, 7, math.nan]]
    assert statistics.value_at_cost(values, cost, 9).tolist() == pytest.approx([2, math.nan], nan_ok=True)
    assert statistics.value_at_cost(values, cost, 7).tolist() == [2, 2]

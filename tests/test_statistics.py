"""Intervals, tests and estimators against closed forms, scipy, brute force and hand-computed numbers."""

from __future__ import annotations

import itertools
import math
import statistics as standard

import numpy as np
import pytest
from scipy import stats

from ahf_cli.report.statistics.best_of import (
    best_so_far,
    best_weights,
    expected_best,
    expected_best_interval,
    probability_of_beating,
    probability_of_beating_interval,
)
from ahf_cli.report.statistics.interval import (
    bootstrap_interval,
    iqm_interval,
    mean_interval,
    median_interval,
    student_interval,
    wilson_interval,
)
from ahf_cli.report.statistics.pairs import cliffs_delta, holm, mcnemar_test, paired_permutation_test
from ahf_cli.report.statistics.sample import (
    empirical_distribution,
    interquartile_mean,
    rank_correlation,
    summarize,
)
from ahf_cli.report.statistics.trajectory import (
    Band,
    band,
    carry_forward,
    count,
    first_crossing,
    value_at_cost,
)

X = np.array([0.4, 0.9, 0.5, 2.3, 0.7, 2.3, 1.1])
Y = np.array([0.6, 0.5, 1.9, 2.3, 0.8])


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_students_interval_of_a_mean_is_scipys() -> None:
    theirs = stats.ttest_1samp(X, 0).confidence_interval(0.95)
    ours = student_interval([*X, math.nan])
    assert ours == pytest.approx((X.mean(), theirs.low, theirs.high), rel=1e-9)


@pytest.mark.parametrize("scale", [1.0, -3.0])
def test_the_interval_of_a_mean_ends_where_halls_statistic_is_students_quantile(scale: float) -> None:
    x, n = scale * X, len(X)
    found = mean_interval([*x, math.nan])
    skewness = float(stats.skew(x))
    for end, quantile in ((found.low, 0.975), (found.high, 0.025)):
        t = math.sqrt(n) * (x.mean() - end) / x.std(ddof=1)
        g = t + skewness * t**2 / (3 * math.sqrt(n)) + skewness**2 * t**3 / (27 * n)
        g += skewness / (6 * math.sqrt(n))
        assert g == pytest.approx(stats.t.ppf(quantile, n - 1), rel=1e-9)


def test_the_interval_of_the_mean_of_a_symmetric_sample_is_students() -> None:
    for x in ([1.0, 4.0], [1.0, 2.0, 3.0, 6.0, 7.0, 8.0]):
        assert mean_interval(x) == pytest.approx(student_interval(x), rel=1e-12)
    # a skewness of 1e-5 on either side of the limit
    near = mean_interval([1.0, 2.0, 3.0, 6.0, 7.0, 8.0001])
    assert near == pytest.approx(student_interval([1.0, 2.0, 3.0, 6.0, 7.0, 8.0001]), rel=1e-3)


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0, 2.0]])
def test_no_interval_of_a_mean_or_iqm_without_two_different_values(values: list[float]) -> None:
    for found in (mean_interval(values), student_interval(values), iqm_interval(values, rng())):
        assert math.isnan(found.low) and math.isnan(found.high)
        assert not found.excludes(-5)


def test_the_interval_of_a_median_takes_scipys_ranks() -> None:
    for n in (6, 7, 20, 70):
        x = np.sort(rng().normal(size=n))
        theirs = stats.quantile_test(x, q=0, p=0.5).confidence_interval(0.95)
        _, low, high = median_interval(x)
        assert (low, high) == (theirs.low, theirs.high)
    assert math.isnan(median_interval(range(5)).low)
    never = median_interval([1, 2, 3, 4, *[math.inf] * 6])
    assert never.estimate == math.inf == never.high and never.low == 2


def test_the_interquartile_mean_is_scipys_trimmed_mean_for_whole_quarters() -> None:
    x = rng().normal(size=(12, 3))
    np.testing.assert_allclose(interquartile_mean(x), stats.trim_mean(x, 0.25), rtol=1e-12)
    # n = 5: 0.75 · x_(1) + x_(2) + 0.75 · x_(3) over 2.5
    assert float(interquartile_mean([9.0, 1, 2, 4, 0])) == pytest.approx((0.75 + 2 + 3) / 2.5)


def test_the_bootstrap_interval_is_scipys() -> None:
    x = np.concatenate([X, Y])
    theirs = stats.bootstrap((x,), np.mean, method="percentile", n_resamples=20_000, rng=1)
    ours = bootstrap_interval(x, lambda x: x.mean(axis=0), rng(), resamples=20_000)
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.05)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.05)


@pytest.mark.parametrize(("x", "n"), [(0, 4), (2, 4), (7, 70), (20, 20)])
def test_the_interval_of_a_rate_is_scipys(x: int, n: int) -> None:
    theirs = stats.binomtest(x, n).proportion_ci(method="wilson")
    assert wilson_interval(x, n) == pytest.approx((x / n, theirs.low, theirs.high), abs=1e-12)


def test_the_interval_of_a_rate_refuses_more_successes_than_trials() -> None:
    for wrong in (4, -1):
        with pytest.raises(ValueError, match=rf"successes must be in \[0, 3\], got {wrong}"):
            wilson_interval(wrong, 3)


@pytest.mark.parametrize("k", [1, 2, 3, 6, 7])
def test_the_expected_best_of_k_is_the_mean_over_all_subsets(k: int) -> None:
    brute = np.mean([min(s) for s in itertools.combinations(X, k)])
    assert expected_best(X, k) == pytest.approx(brute, rel=1e-13)
    assert best_weights(7, k).sum() == pytest.approx(1)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_probability_of_beating_is_the_share_over_all_pairs_of_subsets(k: int) -> None:
    bests = [[min(s) for s in itertools.combinations(z, k)] for z in (X, Y)]
    brute = np.mean([(a < b) + 0.5 * (a == b) for a, b in itertools.product(*bests)])
    assert probability_of_beating(X, Y, k) == pytest.approx(brute, rel=1e-12)
    back = probability_of_beating(Y, X, k)
    assert probability_of_beating(X, Y, k) + back == pytest.approx(1)


def test_leaving_out_one_value_gives_the_jackknife_error() -> None:
    brute = np.array([expected_best(np.delete(X, i), 2) for i in range(len(X))])
    error = math.sqrt((len(X) - 1) / len(X) * np.sum((brute - brute.mean()) ** 2))
    from ahf_cli.report.statistics.best_of import _jackknife_errors

    ordered = np.sort(X)[:, None] + [0.0, 5.0]
    assert _jackknife_errors(ordered, 2) == pytest.approx([error, error])


def test_too_few_trials_for_a_budget_have_an_estimate_and_no_interval() -> None:
    assert math.isnan(expected_best_interval(X, 4, rng()).low)
    assert math.isnan(expected_best_interval([1.0] * 18 + [0.5] * 2, 2, rng()).low)
    assert math.isnan(expected_best_interval(np.arange(20.0), 7, rng()).low)
    assert expected_best_interval(np.arange(20.0), 6, rng()).excludes(9)
    assert math.isnan(probability_of_beating_interval(X, Y, 2).low)
    assert probability_of_beating_interval(range(8), range(10, 18), 2) == pytest.approx(
        (1, math.nan, math.nan), nan_ok=True
    )
    apart = np.arange(32.0) + 0.5
    assert math.isnan(probability_of_beating_interval(range(31), apart, 4).low)
    assert probability_of_beating_interval(range(32), apart, 4).low > 0.2
    assert math.isnan(probability_of_beating_interval([0, *[1] * 31], apart, 2).low)
    with pytest.raises(ValueError, match=r"k must be in \[1, n = 7\], got 8"):
        expected_best(X, 8)


def test_the_best_so_far_passes_over_missing_values() -> None:
    assert best_so_far([3, math.nan, 2, 5]).tolist() == [3, 3, 2, 2]


@pytest.mark.parametrize("n", [5, 10])
def test_the_permutation_test_is_scipys(n: int) -> None:
    a, b = rng().normal(size=(2, n)) + [[0.5], [0]]
    theirs = stats.permutation_test((a, b), lambda x, y: np.mean(x - y), permutation_type="samples")
    assert paired_permutation_test(a, b, rng()) == pytest.approx(theirs.pvalue, rel=1e-12)


def test_many_pairs_are_permuted_at_random() -> None:
    a = rng().normal(size=50)
    p = paired_permutation_test(a, np.zeros(50), rng())
    assert p == pytest.approx(stats.ttest_1samp(a, 0).pvalue, abs=0.03)
    assert paired_permutation_test(a + 9, np.zeros(50), rng()) == pytest.approx(1 / 20_001)
    assert math.isnan(paired_permutation_test([math.nan], [0.0], rng()))


def test_cliffs_delta_counts_pairs_and_follows_the_u_statistic() -> None:
    u = stats.mannwhitneyu(X, Y).statistic
    delta = cliffs_delta(X, Y)
    assert delta.estimate == pytest.approx(2 * u / (len(X) * len(Y)) - 1)
    assert -1 <= delta.low < delta.estimate < delta.high <= 1
    swapped = cliffs_delta(Y, X)
    assert swapped == pytest.approx((-delta.estimate, -delta.high, -delta.low))
    apart = cliffs_delta(range(10), range(20, 30))
    z2 = stats.norm.ppf(0.975) ** 2
    assert apart == pytest.approx((-1, -1, -(10 - z2) / (10 + z2)))
    assert math.isnan(cliffs_delta([1.0], Y).low)
    assert math.isnan(cliffs_delta([], Y).estimate)


def test_mcnemars_test_is_scipys_and_has_its_closed_form() -> None:
    for gained, lost in itertools.product(range(12), range(9)):
        own = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        assert mcnemar_test(gained, lost) == mcnemar_test(lost, gained) == pytest.approx(own, rel=1e-12)
    assert mcnemar_test(14, 0) == pytest.approx(2 * 0.5**14, rel=1e-12)


def test_holm_steps_down() -> None:
    # by hand: 4·0.01, 3·0.02, 2·0.03 (not below 3·0.02), 0.5
    assert holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert holm([0.9, math.nan, 0.8]) == pytest.approx([1, math.nan, 1], nan_ok=True)
    assert holm([]) == []
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\], got 1.5"):
        holm([0.2, 1.5])


@pytest.mark.parametrize("m", [1, 2, 5, 9])
def test_holm_is_the_closure_of_bonferronis_test(m: int) -> None:
    """A hypothesis falls where every intersection with it falls (Marcus, Peritz and Gabriel 1976)."""
    p = np.round(rng().random(m) ** 3, 2)  # with ties
    families = [s for size in range(1, m + 1) for s in itertools.combinations(range(m), size)]
    closed = [min(1.0, max(len(s) * p[list(s)].min() for s in families if i in s)) for i in range(m)]
    assert holm(p.tolist()) == pytest.approx(closed, abs=1e-15)
    gaps = np.insert(p, 0, math.nan)
    assert holm(gaps.tolist())[1:] == pytest.approx(closed, abs=1e-15)


def test_holm_steps_through_a_thousand_tests() -> None:
    p = rng().random(1000) ** 4
    for bound in (0.01, 0.05, 0.5):
        rejected = set()
        for step, test in enumerate(np.argsort(p)):  # by definition: stop at the first that stays
            if p[test] > bound / (1000 - step):
                break
            rejected.add(int(test))
        assert {i for i, value in enumerate(holm(p.tolist())) if value <= bound} == rejected


def test_the_distribution_counts_what_is_never_met() -> None:
    found = empirical_distribution([1, 1, 3, math.inf])
    half = math.sqrt(math.log(40) / 8)
    assert found.value.tolist() == [1, 3] and found.share.tolist() == [0.5, 0.75]
    assert found.low.tolist() == pytest.approx([0, 0.75 - half]) and found.high.tolist() == [1, 1]
    assert np.isnan(empirical_distribution([1.0]).low).all()
    assert len(empirical_distribution([]).value) == 0


def test_the_rank_correlation_is_scipys() -> None:
    x, y = [1, 2, 2, 5, 9], [3, 1, 4, 4, 8]
    assert rank_correlation(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert math.isnan(rank_correlation([1, 1, 1], [1, 2, 3]))


def test_a_target_is_met_at_the_cost_of_the_first_evaluation_beyond_it() -> None:
    accuracy = [[0.1, 0.8, 0.7], [0.1, 0.5, math.nan], [math.nan, math.nan, math.nan]]
    cost = [[0.0, 5, 10], [0, 7, math.nan], [0, math.nan, math.nan]]
    assert first_crossing(accuracy, cost, 0.8).tolist() == [5, math.inf, math.inf]
    assert first_crossing(accuracy, cost, 0.3, higher=False).tolist() == [0, 0, math.inf]


def test_at_a_cost_the_last_evaluation_counts_and_a_trial_that_ended_before_does_not() -> None:
    values = [[1.0, 2, 3], [1, 2, math.nan]]
    cost = [[0.0, 5, 10], [0, 7, math.nan]]
    assert value_at_cost(values, cost, 9).tolist() == pytest.approx([2, math.nan], nan_ok=True)
    assert value_at_cost(values, cost, 7).tolist() == [2, 2]


COLUMNS = np.array([[3.0, 1.0], [1.0, 1.0], [4.0, np.nan], [8.0, np.nan]])


def test_bands_are_those_of_the_standard_library_and_of_scipy() -> None:
    column = [3.0, 1.0, 4.0, 8.0]
    deviation = standard.stdev(column)
    theirs = stats.ttest_1samp(column, 0).confidence_interval(0.95)
    expected: dict[Band, float] = {
        "sd": 4 + deviation,
        "se": 4 + deviation / 2,
        "ci": theirs.high,
        "iqr": float(np.quantile(column, 0.75)),
    }
    for kind, high in expected.items():
        found = band(COLUMNS, kind)
        assert found.high[0] == pytest.approx(high, rel=1e-12), kind
        assert (found.centre[1], found.low[1], found.high[1]) == (1, 1, 1), kind
    assert band(COLUMNS, "iqr").centre[0] == standard.median(column)
    assert count(COLUMNS).tolist() == [4, 2]


def test_the_permutation_test_of_twenty_pairs_is_exact() -> None:
    """For whole numbers dᵢ, the distribution of Σ ±dᵢ is known by counting."""
    d = np.arange(1, 21)
    a = np.where(np.arange(20) % 5 == 0, -d, d).astype(float)
    ways: dict[int, int] = {0: 1}
    for step in d.tolist():
        ways = {
            total: ways.get(total - step, 0) + ways.get(total + step, 0)
            for total in {t + s for t in ways for s in (step, -step)}
        }
    expected = sum(n for total, n in ways.items() if abs(total) >= abs(a.sum())) / 2**20
    assert paired_permutation_test(a, np.zeros(20), rng()) == pytest.approx(expected, rel=1e-12)
    assert paired_permutation_test([1.0, -1.0], [0.0, 0.0], rng()) == 1


@pytest.mark.parametrize("kind", ["se", "sd", "iqr"])
def test_one_trial_has_a_centre_and_no_band(kind: Band) -> None:
    centre, low, high = band([[2.0]], kind)
    assert centre.tolist() == [2] and np.isnan(low).all() and np.isnan(high).all()


@pytest.mark.parametrize("kind", ["se", "sd", "iqr"])
def test_no_value_gives_nan_and_no_warning(kind: Band) -> None:
    for values in ([[np.nan], [np.nan]], np.empty((0, 1))):
        assert all(np.isnan(part).all() for part in band(values, kind))


def test_bands_of_0_to_4_are_known() -> None:
    x = np.arange(5.0)[:, None]
    assert [float(v[0]) for v in band(x, "iqr")] == [2, 1, 3]
    sd = math.sqrt(2.5)
    assert [float(v[0]) for v in band(x, "sd")] == pytest.approx([2, 2 - sd, 2 + sd])
    se = math.sqrt(0.5)
    assert [float(v[0]) for v in band(x, "se")] == pytest.approx([2, 2 - se, 2 + se])


def test_infinities_do_not_spread_from_their_column() -> None:
    centre, low, _ = band([[np.inf, 1.0], [1.0, 1.0]], "iqr")
    assert centre[0] == np.inf and (centre[1], low[1]) == (1, 1)


def test_only_diverged_trials_are_carried_forward_and_from_their_end_on() -> None:
    values = [[1.0, 9.0, np.inf, 5.0], [1.0, np.nan, np.nan, np.nan], [1.0, 2.0, np.nan, np.nan]]
    filled = carry_forward(values, [True, True, False], 2.3)
    np.testing.assert_array_equal(filled[:2], [[1, 9, 2.3, 2.3], [1, 2.3, 2.3, 2.3]])
    np.testing.assert_array_equal(filled[2], [1, 2, np.nan, np.nan])
    assert values[0][2] == np.inf


def test_a_summary_leaves_missing_values_out() -> None:
    found = summarize([0.5, 0.7, np.nan, 2.3], "lower")
    assert found.mean == pytest.approx(3.5 / 3) and (found.best, found.worst) == (0.5, 2.3)
    assert found.standard_error == pytest.approx(np.std([0.5, 0.7, 2.3], ddof=1) / math.sqrt(3))
    assert summarize([0.5, 0.7], "higher").best == 0.7
    none = summarize([np.nan], "lower")
    assert math.isnan(none.mean) and math.isnan(none.best)

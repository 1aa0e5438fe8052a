"""Statistics against closed forms and the standard library."""

from __future__ import annotations

import math
import statistics as standard

import numpy as np
import pytest

from ahf_cli.report import statistics

X = np.array([[3.0, 1.0], [1.0, 1.0], [4.0, np.nan], [8.0, np.nan]])


def test_moments_and_quantiles_of_a_column_are_those_of_its_values() -> None:
    column = [3.0, 1.0, 4.0, 8.0]
    mean, error = statistics.mean_and_standard_error(X)
    assert mean[0] == standard.mean(column) == 4
    assert statistics.standard_deviation(X)[0] == pytest.approx(standard.stdev(column), rel=1e-15)
    assert error[0] == pytest.approx(standard.stdev(column) / 2, rel=1e-15)
    assert statistics.median(X)[0] == standard.median(column)
    assert statistics.count(X).tolist() == [4, 2]
    assert (mean[1], error[1]) == (1, 0)


@pytest.mark.parametrize("q", [0, 0.1, 0.25, 0.5, 0.75, 1])
def test_quantiles_agree_with_numpy_where_nothing_is_missing(q: float) -> None:
    x = np.random.default_rng(0).normal(size=(7, 3))
    np.testing.assert_allclose(statistics.quantile(x, q), np.quantile(x, q, axis=0), rtol=1e-13)


@pytest.mark.parametrize("kind", ["se", "sd", "iqr"])
def test_one_trial_has_a_centre_and_no_band(kind: statistics.Band) -> None:
    centre, low, high = statistics.band([[2.0]], kind)
    assert centre.tolist() == [2] and np.isnan(low).all() and np.isnan(high).all()


@pytest.mark.parametrize("kind", ["se", "sd", "iqr"])
def test_no_value_gives_nan_and_no_warning(kind: statistics.Band) -> None:
    for values in ([[np.nan], [np.nan]], np.empty((0, 1))):
        assert all(np.isnan(part).all() for part in statistics.band(values, kind))


def test_bands_of_0_to_4_are_known() -> None:
    x = np.arange(5.0)[:, None]
    assert [float(v[0]) for v in statistics.band(x, "iqr")] == [2, 1, 3]
    sd = math.sqrt(2.5)
    assert [float(v[0]) for v in statistics.band(x, "sd")] == pytest.approx([2, 2 - sd, 2 + sd])
    se = math.sqrt(0.5)
    assert [float(v[0]) for v in statistics.band(x, "se")] == pytest.approx([2, 2 - se, 2 + se])


def test_infinities_do_not_spread_from_their_column() -> None:
    centre, low, _ = statistics.band([[np.inf, 1.0], [1.0, 1.0]], "iqr")
    assert centre[0] == np.inf and (centre[1], low[1]) == (1, 1)


def test_only_diverged_trials_are_carried_forward_and_from_their_end_on() -> None:
    values = [[1.0, 9.0, np.inf, 5.0], [1.0, np.nan, np.nan, np.nan], [1.0, 2.0, np.nan, np.nan]]
    filled = statistics.carry_forward(values, [True, True, False], 2.3)
    np.testing.assert_array_equal(filled[:2], [[1, 9, 2.3, 2.3], [1, 2.3, 2.3, 2.3]])
    np.testing.assert_array_equal(filled[2], [1, 2, np.nan, np.nan])
    assert values[0][2] == np.inf


def test_a_summary_counts_diverged_trials_at_chance_or_not_at_all() -> None:
    values, status = [0.5, 0.7, np.nan, np.nan], ["ok", "ok", "diverged", "failed"]
    both = statistics.summarize(values, status, "lower", 2.3)
    without = statistics.summarize(values, status, "lower")
    assert (both.n, both.ok, both.diverged, both.failed) == (3, 2, 1, 1)
    assert both.mean == pytest.approx(3.5 / 3) and (both.best, both.worst) == (0.5, 2.3)
    assert without.n == 2 and without.mean == pytest.approx(0.6)
    assert without.standard_error == pytest.approx(0.1)
    assert statistics.summarize(values, status, "higher").best == 0.7
    none = statistics.summarize([np.nan], ["failed"], "lower", 2.3)
    assert none.n == 0 and math.isnan(none.mean) and math.isnan(none.best)

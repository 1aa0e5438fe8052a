"""Crossed tables and samples of two clusters against closed forms, projections and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from ahf_cli.report.statistics.clusters import mean_of_all, mean_of_trained, two_clusters
from ahf_cli.report.statistics.components import Crossed, crossed
from ahf_cli.report.statistics.interval import mean_interval
from ahf_cli.report.statistics.trajectory import Array


def normal_table(*shape: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    draws, seeds = shape[:2]
    y = rng.normal(size=(draws, 1)) + 2 * rng.normal(size=(1, seeds)) + rng.normal(size=(draws, seeds))
    return y if len(shape) == 2 else y[:, :, None] + 0.5 * rng.normal(size=shape)


def variances(found: Crossed) -> dict[str, float]:
    return {name: part.unbiased for name, part in found.components.items()}


def test_the_components_of_a_table_of_four_are_known() -> None:
    # mean squares 16, 4 and 1 from the contrasts (9 + 3 − 5 − 1 + …)/2 = 4, 2 and 1
    found = crossed([[0.0, 1.0], [3.0, 6.0]])
    assert variances(found) == pytest.approx({"draw": 7.5, "seed": 1.5, "rest": 1.0})
    assert found.mean.estimate == 2.5
    shares = [part.share for part in found.components.values()]
    assert shares == pytest.approx([0.75, 0.15, 0.1])
    low, high = (1 / stats.chi2.ppf(tail, 1) for tail in (0.975, 0.025))
    assert found.components["rest"].variance == pytest.approx((1, low, high))
    assert found.components["rest"].deviation == pytest.approx((1, low**0.5, high**0.5))
    # Var(ȳ) = (16 + 4 − 1)/4, with Satterthwaite's 19²/(16² + 4² + 1²) degrees of freedom
    half = stats.t.ppf(0.975, 361 / 273) * math.sqrt(19 / 4)
    assert found.mean == pytest.approx((2.5, 2.5 - half, 2.5 + half))


@pytest.mark.parametrize("shape", [(4, 3), (3, 5, 2), (2, 4, 3)])
def test_estimates_solve_the_expected_quadratic_forms(shape: tuple[int, ...]) -> None:
    """E[yᵀPy] = Σ σ² tr(P Z Zᵀ), for projections P and indicators Z of each effect."""
    y, sizes = normal_table(*shape), (*shape, 1)[:3]
    ones, eyes = [np.full((n, n), 1 / n) for n in sizes], [np.eye(n) for n in sizes]
    centred = [e - o for e, o in zip(eyes, ones, strict=True)]

    def kron(
        *parts: Array,
    ) -> Array:
        return np.asarray(np.kron(np.kron(parts[0], parts[1]), parts[2]))

    projections = [
        kron(centred[0], ones[1], ones[2]), kron(ones[0], centred[1], ones[2]),
        kron(centred[0], centred[1], ones[2]), kron(eyes[0], eyes[1], centred[2]),
    ]  # fmt: skip
    full = [np.ones((n, n)) for n in sizes]
    covariances = [
        kron(eyes[0], full[1], full[2]), kron(full[0], eyes[1], full[2]),
        kron(eyes[0], eyes[1], full[2]), kron(*eyes),
    ]  # fmt: skip
    used = 4 if len(shape) == 3 else 3
    matrix = [[np.trace(p @ c) for c in covariances[:used]] for p in projections[:used]]
    forms = [y.ravel() @ p @ y.ravel() for p in projections[:used]]
    expected = np.linalg.solve(matrix, forms)
    found = variances(crossed(y))
    assert list(found.values()) == pytest.approx(list(expected))
    names = ["draw", "seed", "interaction", "retraining"] if used == 4 else ["draw", "seed", "rest"]
    assert list(found) == names


def test_a_component_is_above_0_where_the_f_test_rejects() -> None:
    """The least ratio of mean squares that rejects has its lower end at 0 (Ting et al. 1990)."""
    y = normal_table(6, 4)
    rows = y.mean(axis=1, keepdims=True) - y.mean()
    rest = crossed(y - rows).components["rest"].unbiased
    between = 4 * np.sum(rows**2) / 5
    critical = stats.f.ppf(0.975, 5, 15)
    edge = math.sqrt(critical * rest / between)
    assert crossed(y - rows + 1.001 * edge * rows).components["draw"].variance.low > 0
    assert crossed(y - rows + 0.999 * edge * rows).components["draw"].variance.low == 0
    other = math.sqrt(stats.f.ppf(0.025, 5, 15) * rest / between)
    assert crossed(y - rows + 1.001 * other * rows).components["draw"].variance.high > 0
    assert crossed(y - rows + 0.999 * other * rows).components["draw"].variance.high == 0


def test_a_negative_estimate_is_reported_as_0() -> None:
    found = crossed([[1.0, -1.0], [-1.0, 1.0]])
    draw = found.components["draw"]
    assert draw.unbiased == -2 and draw.negative and draw.variance[:2] == (0, 0) and draw.share == 0
    assert not found.components["rest"].negative and found.components["rest"].share == 1
    # Only the rest is left: Var(ȳ) = 4/4 with one degree of freedom
    assert found.mean.high == pytest.approx(stats.t.ppf(0.975, 1))


def test_no_interval_without_spread_or_with_two_clusters() -> None:
    same = crossed(np.full((3, 3), 0.1))
    assert math.isnan(same.mean.low) and math.isnan(same.components["draw"].share)
    y = normal_table(3, 3)
    mixed, whole = crossed(y, trained=y > np.median(y)), crossed(y, trained=np.ones((3, 3)))
    assert mixed.mean.estimate == whole.mean.estimate and whole == crossed(y)
    for part in (mixed.mean, *(c.variance for c in mixed.components.values())):
        assert math.isnan(part.low) and math.isnan(part.high)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.ones((1, 5)), "crossed needs at least 2 draws, got 1"),
        (np.ones((5, 1)), "crossed needs at least 2 seeds, got 1"),
        (np.ones((5, 2, 1)), "crossed needs at least 2 repeats, got 1"),
        (np.ones(5), r"crossed needs values of shape \(draws, seeds\[, repeats\]\), got \(5,\)"),
        ([[1, 2], [3, math.nan]], "crossed needs a value in every cell; draw 1, seed 1 lacks one"),
        ([[1, math.inf], [3, 4]], "crossed needs a value in every cell; draw 0, seed 1 lacks one"),
    ],
)
def test_an_incomplete_table_is_refused(values: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        crossed(values)  # type: ignore[arg-type]


def test_outcomes_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"trained must have the shape of values, \(2, 2\), got \(4,\)"):
        crossed([[1, 2], [3, 5]], trained=[True] * 4)


def test_two_clusters_are_strictly_between_the_bounds() -> None:
    assert [two_clusters(x, 50) for x in (0, 1, 2, 48, 49, 50)] == [False, False, True, True, False, False]
    assert two_clusters(1, 10) and not two_clusters(69, 70) and not two_clusters(0, 0)
    with pytest.raises(ValueError, match=r"trained must be in \[0, n = 3\], got 4"):
        two_clusters(4, 3)


def test_the_mean_of_two_clusters_has_no_interval() -> None:
    good = np.linspace(0.8, 0.9, 9)
    values = [*good, 0.1, math.nan]
    mixed = mean_of_all(values, 9, 11)
    assert mixed.estimate == pytest.approx((good.sum() + 0.1) / 10) and math.isnan(mixed.low)
    assert mean_of_all(good, 9, 9) == mean_of_all(good, 0, 9) == mean_interval(good)


def test_a_few_that_trained_have_no_interval() -> None:
    good = np.linspace(0.8, 0.9, 9)
    assert mean_of_trained([*good, math.nan]) == mean_interval(good)
    assert mean_of_trained(good[:5]) == mean_interval(good[:5])
    few = mean_of_trained([*good[:4], math.nan])
    assert few.estimate == pytest.approx(good[:4].mean()) and math.isnan(few.high)
    assert math.isnan(mean_of_trained([]).estimate)

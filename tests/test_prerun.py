"""Search ranges from given norms and smoothness values."""

from __future__ import annotations

import numpy as np
import pytest

from ahf_cli.config.load import load
from ahf_cli.recipes.hyperparameters import Range
from ahf_cli.search.prerun import estimate_sigma, estimate_smoothness, ranges


def test_sigma_goes_from_the_median_to_the_maximum_of_the_peaks() -> None:
    norms = [np.array([1.0, 5.0, 2.0]), np.array([9.0, 3.0]), np.array([4.0, 4.0])]
    found = estimate_sigma(norms, "l2")
    assert found.range == Range(5.0, 9.0) and found.paper == Range(30, 100) and found.supported
    assert found.how == "median and maximum of max_t ‖δ_t‖ (l2) over the 3 of 3 trials that stayed finite"


@pytest.mark.parametrize(
    ("norms", "diverged", "why"),
    [
        ([], 0, "only 0 of 0 trials stayed finite"),
        ([np.array([1.0])], 2, "only 1 of 3 trials stayed finite"),
        ([np.array([np.inf, 1.0])], 0, "max_t ‖δ_t‖ (l2) is 0 or not finite"),
        ([np.zeros(3)], 0, "max_t ‖δ_t‖ (l2) is 0 or not finite"),
    ],
)
def test_sigma_without_support_keeps_the_papers_range(
    norms: list[np.ndarray], diverged: int, why: str
) -> None:
    found = estimate_sigma(norms, "l2", diverged)
    assert found.range == Range(30, 100) and not found.supported
    assert found.how.startswith(f"no support: {why}")


def test_smoothness_goes_from_the_median_to_the_95_percent_quantile_of_the_positive_values() -> None:
    values = [np.arange(-20.0, 50.0), np.array([np.nan, np.inf])]
    found = estimate_smoothness(values)
    positive = np.arange(1.0, 50.0)
    assert found.range == Range(float(np.median(positive)), float(np.quantile(positive, 0.95)))
    assert "49 of 72 values" in found.how and found.supported


@pytest.mark.parametrize(
    ("values", "diverged", "why"),
    [
        ([], 0, "only 0 of 0 trials stayed finite"),
        ([np.arange(1.0, 20.0)], 0, "19 of 19 values of L̂"),
        ([np.r_[np.arange(1.0, 40.0), -np.ones(60)]], 0, "39 of 99 values of L̂"),
        ([np.arange(1.0, 101.0)] * 2, 3, "only 2 of 5 trials stayed finite (needed: 50%)"),
    ],
)
def test_smoothness_without_support_keeps_the_papers_range(
    values: list[np.ndarray], diverged: int, why: str
) -> None:
    found = estimate_smoothness(values, diverged)
    assert found.range == Range(50, 300) and not found.supported
    assert found.how.startswith(f"no support: {why}")


def test_half_of_the_trials_support_a_range() -> None:
    found = estimate_smoothness([np.arange(1.0, 101.0)] * 2, 2)
    assert found.supported and "over the 2 of 4 trials that stayed finite" in found.how


def test_a_search_takes_the_ranges() -> None:
    estimates = [estimate_sigma([np.array([0.2, 0.4])], "l2"), estimate_smoothness([np.arange(1.0, 101.0)])]
    config = load("smoke").with_ranges(ranges("adaptive_hf", estimates))
    assert config.space("adaptive_hf")["sigma"] == Range(0.4, 0.4)
    assert config.space("adaptive_hf")["smoothness"].low == 50.5

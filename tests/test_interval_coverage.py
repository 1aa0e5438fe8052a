"""Coverage of 95 % intervals: the share of simulated samples whose interval holds the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from ahf_cli.report.statistics.best_of import expected_best_interval, probability_of_beating_interval
from ahf_cli.report.statistics.interval import (
    Interval,
    iqm_interval,
    mean_interval,
    median_interval,
    rate_difference,
    wilson_interval,
)
from ahf_cli.report.statistics.pairs import cliffs_delta
from ahf_cli.report.statistics.sample import empirical_distribution, interquartile_mean
from ahf_cli.report.statistics.trajectory import Array

Draw = Callable[[int], Array]
RNG = np.random.default_rng(0)
SAMPLES: dict[str, Draw] = {
    "normal": lambda n: RNG.normal(size=n),
    "skewed": lambda n: RNG.exponential(size=n),
    "heavy": lambda n: RNG.standard_t(3, size=n),
}
LOSSES: dict[str, Draw] = {  # bounded below, as losses are
    "normal": lambda n: np.abs(RNG.normal(3, 1, size=n)),
    "skewed": lambda n: RNG.exponential(size=n),
    "heavy": lambda n: RNG.pareto(3, size=n),
}
RATES = np.linspace(0.05, 0.5, 10)
MANY = 400_000


def covered(intervals: Iterator[Interval], truth: float) -> float:
    return float(np.mean([i.low <= truth <= i.high for i in intervals]))


def of_samples(
    interval: Callable[[Array], Interval],
    truth: Callable[[Array], float],
    n: int,
    runs: int,
    draws: dict[str, Draw],
) -> float:
    found = []
    for draw in draws.values():
        exact = truth(draw(MANY))
        found.append(covered((interval(draw(n)) for _ in range(runs)), exact))
    return float(np.mean(found))


TwoSamples = tuple[Callable[[Array, Array], Interval], Callable[[Array, Array], float]]
INTERVALS: dict[str, tuple[Callable[[Array], Interval], Callable[[Array], float], dict[str, Draw]]] = {
    "mean": (mean_interval, lambda x: float(x.mean()), SAMPLES),
    "median": (median_interval, lambda x: float(np.median(x)), SAMPLES),
    "iqm": (
        lambda x: iqm_interval(x, RNG), lambda x: float(interquartile_mean(x)), SAMPLES
    ),
    "best of 2": (
        lambda x: expected_best_interval(x, 2, RNG, resamples=400),
        lambda x: float(x.reshape(-1, 2).min(axis=1).mean()), LOSSES,
    ),
    "best of 8": (
        lambda x: expected_best_interval(x, 8, RNG, resamples=400),
        lambda x: float(x.reshape(-1, 8).min(axis=1).mean()), LOSSES,
    ),
}  # fmt: skip
TWO: dict[str, TwoSamples] = {
    "cliffs delta": (cliffs_delta, lambda a, b: float(np.mean(np.sign(a - b)))),
    "beats, k = 4": (
        lambda a, b: probability_of_beating_interval(a, b, 4),
        lambda a, b: float(np.mean(a.reshape(-1, 4).min(axis=1) < b.reshape(-1, 4).min(axis=1))),
    ),
}


def check_samples(name: str, n: int, runs: int, slack: float = 0) -> None:
    interval, truth, draws = INTERVALS[name]
    assert 0.92 - slack <= of_samples(interval, truth, n, runs, draws) <= 0.98 + slack


def check_two_samples(name: str, n: int, runs: int, slack: float = 0) -> None:
    interval, truth = TWO[name]
    found = []
    for draw in SAMPLES.values():
        for shift in (0.0, 0.7):
            exact = truth(draw(MANY), draw(MANY) + shift)
            found.append(covered((interval(draw(n), draw(n) + shift) for _ in range(runs)), exact))
    assert 0.92 - slack <= float(np.mean(found)) <= 0.98 + slack


def check_rates(n: int) -> None:
    """Check the mean coverage over the binomial distribution, which is exact without a simulation."""
    x = np.arange(n + 1)
    chances = {p: np.array([math.comb(n, int(k)) * p**k * (1 - p) ** (n - k) for k in x]) for p in RATES}
    one = [wilson_interval(int(k), n) for k in x]
    single = [c @ np.array([i.low <= p <= i.high for i in one]) for p, c in chances.items()]
    assert 0.92 <= float(np.mean(single)) <= 0.98
    two = [[rate_difference(int(j), n, int(k), n) for k in x] for j in x]
    low, high = (np.array([[getattr(i, end) for i in row] for row in two]) for end in ("low", "high"))
    double = [
        a @ ((low <= p - q) & (p - q <= high)) @ b for p, a in chances.items() for q, b in chances.items()
    ]
    assert 0.92 <= float(np.mean(double)) <= 0.98


@pytest.mark.parametrize("n", [20, 70])
def test_intervals_of_rates_and_their_differences_hold_the_truth(n: int) -> None:
    check_rates(n)


@pytest.mark.parametrize("name", INTERVALS)
def test_intervals_of_one_sample_hold_the_truth_in_short(name: str) -> None:
    # three standard deviations of a share near 0.95 over 3 × 150 runs
    check_samples(name, 20, 150, slack=0.03)


@pytest.mark.parametrize("name", TWO)
def test_intervals_of_two_samples_hold_the_truth_in_short(name: str) -> None:
    check_two_samples(name, 20, 60, slack=0.03)


@pytest.mark.long
@pytest.mark.parametrize("n", [20, 70])
@pytest.mark.parametrize("name", INTERVALS)
def test_intervals_of_one_sample_hold_the_truth(name: str, n: int) -> None:
    check_samples(name, n, 2000)


@pytest.mark.long
@pytest.mark.parametrize("n", [20, 70])
@pytest.mark.parametrize("name", TWO)
def test_intervals_of_two_samples_hold_the_truth(name: str, n: int) -> None:
    check_two_samples(name, n, 1500)


@pytest.mark.parametrize("n", [20, 70])
def test_the_band_of_a_distribution_holds_the_whole_of_it(n: int) -> None:
    half = math.sqrt(math.log(40) / (2 * n))
    runs = 1000
    held = 0
    for _ in range(runs):
        found = empirical_distribution(RNG.random(n))
        # F is the diagonal; F̂ jumps at each value, so both sides of the jump are checked
        held += bool(
            np.all(found.value <= found.share - 1 / n + half) and np.all(found.value >= found.share - half)
        )
    assert 0.93 <= held / runs <= 0.99

"""Estimates with their 95 % intervals.  An interval is NaN where the data cannot give one, never a point."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ahf_cli.report.statistics.moments import Array, mean_and_standard_error, median
from ahf_cli.report.statistics.student import student_quantile

LEVEL = 0.95
RESAMPLES = 2000
FEWEST = 10
"""values that a bootstrap interval needs"""


class Interval(NamedTuple):
    """An estimate and the ends of its interval."""

    estimate: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Tell whether a value lies outside; False where there is no interval."""
        return self.low > value or self.high < value

    def clipped(self, low: float, high: float) -> Interval:
        """Return the interval with its ends within what is possible, such as [0, 1]."""
        return Interval(self.estimate, _clip(self.low, low, high), _clip(self.high, low, high))


def mean_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """x̄ ± t_{n−1} s/√n (Student 1908) of values (n,); no interval for n < 2 or without spread."""
    x = _present(values)
    centre, error = (float(v) for v in mean_and_standard_error(x))
    half = student_quantile((1 + level) / 2, len(x) - 1) * error if error > 0 else math.nan
    return Interval(centre, centre - half, centre + half)


def median_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Median of values (n,) between two order statistics, x_(r) and x_(n+1−r), free of any distribution.

    r is the largest rank with P(Bin(n, ½) < r) ≤ (1 − level)/2 (Conover 1999, §3.2); no interval below
    n = 6, where there is no such rank.  Infinite values, such as targets that were never met, are welcome.
    """
    x = np.sort(_present(values))
    n, tail, rank = len(x), 0.0, 0
    while rank < n and tail + math.comb(n, rank) / 2**n <= (1 - level) / 2:
        tail += math.comb(n, rank) / 2**n
        rank += 1
    centre = float(median(x))
    if rank == 0:
        return Interval(centre, math.nan, math.nan)
    return Interval(centre, float(x[rank - 1]), float(x[n - rank]))


def interquartile_mean(values: ArrayLike) -> Array:
    """Mean of the middle half of values (n, …) over axis 0, partial weights at its ends.

    The mean of the quantile function between ¼ and ¾: the IQM of Agarwal et al. 2021 ("Deep reinforcement
    learning at the edge of the statistical precipice"), for any n.  No value may be missing.
    """
    x = np.sort(np.asarray(values, dtype=float), axis=0)
    n = len(x)
    if n == 0:
        return np.full(x.shape[1:], np.nan)
    edges = np.arange(n + 1) / n
    weights = np.diff(np.clip(edges, 0.25, 0.75)) * 2
    return np.asarray(np.tensordot(weights, x, axes=(0, 0)))


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[[Array], Array],
    rng: np.random.Generator,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Interval:
    """Percentile bootstrap (Efron 1979) of a statistic that maps (n, resamples) to (resamples,).

    Resamples the values (n,) with replacement; no interval for n < 10, where it covers too little, or without
    spread.
    """
    x = _present(values)
    centre = float(statistic(x[:, None])[0]) if len(x) else math.nan
    if len(x) < FEWEST or np.ptp(x) == 0:
        return Interval(centre, math.nan, math.nan)
    drawn = statistic(x[rng.integers(len(x), size=(len(x), resamples))])
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(centre, float(low), float(high))


def iqm_interval(values: ArrayLike, rng: np.random.Generator, level: float = LEVEL) -> Interval:
    """Interquartile mean of values (n,) with its bootstrap interval."""
    return bootstrap_interval(values, interquartile_mean, rng, level)


def wilson_interval(successes: int, n: int, level: float = LEVEL) -> Interval:
    """Rate p̂ = x/n with the score interval: all p with |p̂ − p| ≤ z √(p(1−p)/n) (Wilson 1927).

    Raises ValueError unless 0 ≤ x ≤ n; NaN for n = 0.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be in [0, n = {n}], got {successes}")
    if n == 0:
        return Interval(math.nan, math.nan, math.nan)
    z = NormalDist().inv_cdf((1 + level) / 2)
    rate, shrink = successes / n, 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # Rounding must not push the ends past the estimate at 0 and n successes.
    return Interval(rate, min(rate, max(0.0, centre - half)), max(rate, min(1.0, centre + half)))


def rate_difference(x_a: int, n_a: int, x_b: int, n_b: int, level: float = LEVEL) -> Interval:
    """p̂_A − p̂_B with the hybrid score interval, Wilson's ends squared and added (Newcombe 1998)."""
    a, b = wilson_interval(x_a, n_a, level), wilson_interval(x_b, n_b, level)
    difference = a.estimate - b.estimate
    return Interval(
        difference,
        difference - math.hypot(a.estimate - a.low, b.high - b.estimate),
        difference + math.hypot(a.high - a.estimate, b.estimate - b.low),
    )


def _clip(value: float, low: float, high: float) -> float:
    return value if math.isnan(value) else min(max(value, low), high)


def _present(values: ArrayLike) -> Array:
    x = np.asarray(values, dtype=float)
    return np.asarray(x[~np.isnan(x)])

"""Estimates with their 95 % intervals; an interval that the data cannot give is NaN."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from ahf_cli.report.statistics.sample import LEVEL, interquartile_mean
from ahf_cli.report.statistics.trajectory import Array

RESAMPLES = 2000
FEWEST = 10
"""least values for a bootstrap interval"""


class Interval(NamedTuple):
    """An estimate and the ends of its interval."""

    estimate: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Return whether a value lies outside the interval; False without an interval."""
        return self.low > value or self.high < value

    def without_ends(self) -> Interval:
        """Return the estimate alone, where the sample gives no interval."""
        return Interval(self.estimate, math.nan, math.nan)

    def clipped(self, low: float, high: float) -> Interval:
        """Return the interval with its ends limited to the possible range, such as [0, 1]."""
        return Interval(self.estimate, _clip(self.low, low, high), _clip(self.high, low, high))


def mean_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Mean of values (n,) with the t interval after Hall's (1992) removal of skewness.

    The interval has all μ with |g(T)| ≤ t_{n−1} for T = √n (x̄ − μ)/s, where g(T) = T + γT²/(3√n) + γ²T³/(27n)
    + γ/(6√n) and γ is the sample's skewness.  For γ = 0 it is Student's.  There is no interval for n < 2 or
    without spread.
    """
    x = _present(values)
    found = student_interval(x, level)
    half = found.high - found.estimate
    if math.isnan(half):
        return found
    n, t = len(x), float(stdtrit(len(x) - 1, (1 + level) / 2))
    scaled = float(np.mean(((x - found.estimate) / x.std()) ** 3)) / math.sqrt(n)
    low, high = (found.estimate - half / t * _skewed(y, scaled) for y in (t, -t))
    return Interval(found.estimate, low, high)


def _skewed(y: float, scaled: float) -> float:
    """Return T with g(T) = y, for `scaled` = γ/√n: g is the cube of a linear function of T."""
    if abs(scaled) < 1e-6:  # the limit, where the difference below has no digits
        return y
    return 3 / scaled * (float(np.cbrt(1 + scaled * (y - scaled / 6))) - 1)


def student_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """x̄ ± t_{n−1} s/√n (Student 1908) of values (n,); no interval for n < 2 or without spread."""
    x = _present(values)
    n, centre = len(x), float(x.mean()) if len(x) else math.nan
    if n < 2 or not math.isfinite(centre) or np.ptp(x) == 0:
        return Interval(centre, math.nan, math.nan)
    half = float(stdtrit(n - 1, (1 + level) / 2)) * float(x.std(ddof=1)) / math.sqrt(n)
    return Interval(centre, centre - half, centre + half)


def median_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Median of values (n,) between two order statistics, x_(r) and x_(n+1−r), free of any distribution.

    r is the largest rank with P(Bin(n, ½) < r) ≤ (1 − level)/2 (Conover 1999, §3.2).  No such rank exists
    for n < 6.  Infinite values are allowed, such as costs of unmet targets.
    """
    from scipy.stats import quantile_test  # 0.7 s to import

    x = _present(values)
    if not len(x):
        return Interval(math.nan, math.nan, math.nan)
    ends = quantile_test(x, p=0.5).confidence_interval(level)
    return Interval(float(np.median(x)), float(ends.low), float(ends.high))


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[[Array], Array],
    rng: np.random.Generator,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Interval:
    """Percentile bootstrap (Efron 1979) of a statistic that maps (n, resamples) to (resamples,).

    It resamples the values (n,) with replacement.  There is no interval without spread, or for n < 10, where
    its coverage is too low.
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
    from scipy.stats import binomtest  # 0.7 s to import

    if not 0 <= successes <= n:  # scipy raises up to 1.17, and returns NaN from 1.18 on
        raise ValueError(f"successes must be in [0, {n}], got {successes}")
    if n == 0:
        return Interval(math.nan, math.nan, math.nan)
    ends = binomtest(successes, n).proportion_ci(level, method="wilson")
    return Interval(successes / n, float(ends.low), float(ends.high))


def _clip(value: float, low: float, high: float) -> float:
    return value if math.isnan(value) else min(max(value, low), high)


def _present(values: ArrayLike) -> Array:
    x = np.asarray(values, dtype=float)
    return np.asarray(x[~np.isnan(x)])

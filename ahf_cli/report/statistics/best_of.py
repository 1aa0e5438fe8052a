"""The best of k random trials, estimated from n ≥ k trials.

Values are losses: lower is better.  Estimates are unbiased for independent trials of one distribution, as in
random search.  The trials of a Bayesian search depend on each other; `best_so_far` describes them.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from ahf_cli.report.statistics.interval import Interval
from ahf_cli.report.statistics.sample import LEVEL
from ahf_cli.report.statistics.trajectory import Array

FEWEST_TRIALS = 20
"""least trials for an interval of the expected best"""
FEWEST_DISTINCT = 5
"""least distinct values for an interval"""


def best_weights(n: int, k: int) -> Array:
    """C(n−1−i, k−1)/C(n, k) for i = 0 … n−1: probability that x_(i) is the least of k out of n, shape (n,).

    Raises ValueError unless 1 ≤ k ≤ n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"k must be in [1, n = {n}], got {k}")
    weights = np.zeros(n)
    weights[0] = k / n
    for i in range(1, n - k + 1):  # a ratio of neighbours avoids large binomials
        weights[i] = weights[i - 1] * (n - i - k + 1) / (n - i)
    return weights


def expected_best(values: ArrayLike, k: int) -> float:
    """E_k = Σᵢ C(n−1−i, k−1)/C(n, k) · x_(i), x ascending (n,): the mean least of k without replacement.

    The unbiased form of Dodge et al. 2019 ("Show your work"), as Tang et al. 2020 give it.
    """
    x = np.sort(np.asarray(values, dtype=float))
    return float(best_weights(len(x), k) @ x)


def expected_best_interval(
    values: ArrayLike, k: int, rng: np.random.Generator, level: float = LEVEL, resamples: int = 499
) -> Interval:
    """E_k with the bootstrap-t interval (Efron 1981), studentized by the jackknife of the U-statistic.

    A percentile interval has half its nominal coverage here, since no resample is below the least value.
    There is no interval for n < 20, k > n/3 or fewer than 5 distinct values, where the estimate depends on a
    few trials.  The last rule matters where most trials share one capped loss.
    """
    x = np.sort(np.asarray(values, dtype=float))
    n, centre = len(x), expected_best(values, k)
    enough = n >= FEWEST_TRIALS and 3 * k <= n and len(np.unique(x)) >= FEWEST_DISTINCT
    error = float(_jackknife_errors(x[:, None], k)[0]) if enough else 0.0
    if not error > 0:
        return Interval(centre, math.nan, math.nan)
    drawn = np.sort(x[rng.integers(n, size=(n, resamples))], axis=0)
    errors = _jackknife_errors(drawn, k)
    below = np.arange(n) / n  # expected least of k draws with replacement from the sample:
    truth = float(((1 - below) ** k - (1 - below - 1 / n) ** k) @ x)
    usable = errors > 1e-9 * error
    studentized = (best_weights(n, k) @ drawn - truth)[usable] / errors[usable]
    low, high = np.quantile(studentized, [(1 - level) / 2, (1 + level) / 2])
    return Interval(centre, centre - float(high) * error, centre - float(low) * error)


def best_so_far(values: ArrayLike) -> Array:
    """min(x₀ … x_i) for each i, in the order of the trials; NaN counts as no result."""
    return np.asarray(np.fmin.accumulate(np.asarray(values, dtype=float)))


def probability_of_beating(a: ArrayLike, b: ArrayLike, k: int) -> float:
    """P(best of k of A < best of k of B) + ½ P(equal), from losses (n_A,) and (n_B,), without replacement.

    Σᵢⱼ wᵢ wⱼ ([aᵢ < bⱼ] + ½ [aᵢ = bⱼ]) with the weights of `best_weights`: an unbiased U-statistic of two
    samples.
    """
    x, y = np.sort(np.asarray(a, dtype=float)), np.sort(np.asarray(b, dtype=float))
    return float(best_weights(len(x), k) @ _wins(x, y) @ best_weights(len(y), k))


def probability_of_beating_interval(a: ArrayLike, b: ArrayLike, k: int, level: float = LEVEL) -> Interval:
    """P(A beats B | budget k) with a two-sample jackknife interval on the log-odds scale.

    There is no interval for 2k² > n, since the jackknife needs k small against √n (Mentch and Hooker 2016).
    Nor is there one for fewer than 5 distinct values of a recipe, or if one recipe always wins.
    """
    x, y = np.sort(np.asarray(a, dtype=float)), np.sort(np.asarray(b, dtype=float))
    p, n = probability_of_beating(x, y, k), min(len(x), len(y))
    distinct = min(len(np.unique(x)), len(np.unique(y)))
    if 2 * k * k > n or distinct < FEWEST_DISTINCT or not 0 < p < 1:
        return Interval(p, math.nan, math.nan)
    wins = _wins(x, y)
    rows, columns = wins @ best_weights(len(y), k), best_weights(len(x), k) @ wins
    # With one side's weights held, P is linear in the other side's ordered rows.
    errors = [float(_jackknife_errors(side[:, None], k)[0]) for side in (rows, columns)]
    half = float(stdtrit(n - 1, (1 + level) / 2)) * math.hypot(*errors) / (p * (1 - p))
    odds = math.log(p / (1 - p))
    low, high = (1 / (1 + math.exp(-min(max(o, -700), 700))) for o in (odds - half, odds + half))
    return Interval(p, low, high)


def _wins(x: Array, y: Array) -> Array:
    return np.asarray((x[:, None] < y) + 0.5 * (x[:, None] == y))


def _jackknife_errors(ordered: Array, k: int) -> Array:
    """√((n−1)/n Σ (θ₍₋ᵢ₎ − mean)²) (Tukey 1958) of Σ wᵢ x_(i), for columns (n, m) in ascending order: (m,).

    Without value i, earlier values keep their weight, and later values take the weight before.
    """
    n = len(ordered)
    weights = best_weights(n - 1, k)[:, None]
    left_out = np.zeros_like(ordered)
    np.cumsum(weights * ordered[:-1], axis=0, out=left_out[1:])
    left_out[:-1] += np.cumsum((weights * ordered[1:])[::-1], axis=0)[::-1]
    return np.asarray(np.sqrt((n - 1) / n * np.sum((left_out - left_out.mean(axis=0)) ** 2, axis=0)))

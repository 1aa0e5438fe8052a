"""Comparison of two samples: paired differences, permutation test, Cliff's delta, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtr

from ahf_cli.report.statistics.interval import Interval, student_interval
from ahf_cli.report.statistics.sample import LEVEL
from ahf_cli.report.statistics.trajectory import Array

EXACT_PAIRS = 40
"""most pairs n whose 2ⁿ sign patterns are counted, from two sets of 2ⁿᐟ² sums"""
_TOLERANCE = 1e-12


def paired_difference(a: ArrayLike, b: ArrayLike, level: float = LEVEL) -> Interval:
    """Mean of aᵢ − bᵢ over the complete pairs (n,), with Student's interval."""
    return student_interval(np.asarray(a, dtype=float) - np.asarray(b, dtype=float), level)


def paired_permutation_test(
    a: ArrayLike, b: ArrayLike, rng: np.random.Generator, patterns: int = 20_000
) -> float:
    """Two-sided p of the mean difference of pairs (n,) under random signs (Fisher 1935).

    For n ≤ 40 all 2ⁿ patterns are counted by meeting in the middle (Horowitz and Sahni 1974).  Each sum over
    one half of the pairs is sought among the sorted sums over the other half.  For n > 40 the test draws
    `patterns` random patterns; (hits + 1)/(patterns + 1) is valid for any number (Phipson and Smyth 2010).
    p is NaN without a pair.
    """
    d = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    d = d[~np.isnan(d)]
    n = len(d)
    if n == 0:
        return math.nan
    seen = abs(d.sum()) - _TOLERANCE * np.abs(d).sum()
    if seen <= 0:
        return 1.0
    if n > EXACT_PAIRS:
        signs = rng.choice([-1.0, 1.0], size=(patterns, n))
        return float((np.sum(np.abs(signs @ d) >= seen) + 1) / (patterns + 1))
    some, others = _sums(d[: n // 2]), np.sort(_sums(d[n // 2 :]))
    hits = len(others) - np.searchsorted(others, seen - some, side="left")
    # By symmetry as many sums lie below −seen as above seen.
    return float(2 * hits.sum() / 2**n)


def mcnemar_test(gained: int, lost: int) -> float:
    """Exact two-sided p of pairs that change: gained ~ Bin(gained + lost, ½) (McNemar 1947).

    It is 1 if no pair changes.

    Args:
        gained: pairs of which the second member alone trained.
        lost: pairs of which the first alone trained.
    """
    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def _sums(d: Array) -> Array:
    """Return Σᵢ ±dᵢ for all sign patterns, (2ⁿ,)."""
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate([sums - value, sums + value])
    return sums


def cliffs_delta(a: ArrayLike, b: ArrayLike, level: float = LEVEL) -> Interval:
    """δ = P(A > B) − P(A < B) of two samples (n,), (m,) with the interval of Feng and Cliff 2004.

    The variance of δ is unbiased, and the asymmetric ends lie within [−1, 1].  Samples without overlap have
    variance 0; their interval is [(m − z²)/(m + z²), 1], or its mirror image, as for one pair fewer.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    n, m = len(x), len(y)
    if min(n, m) == 0:
        return Interval(math.nan, math.nan, math.nan)
    signs = np.sign(x[:, None] - y)
    delta = float(signs.mean())
    if min(n, m) < 2:
        return Interval(delta, math.nan, math.nan)
    z = NormalDist().inv_cdf((1 + level) / 2)
    if abs(delta) == 1:
        few = min(n, m)
        end = (few - z * z) / (few + z * z)
        return Interval(delta, end, 1.0) if delta > 0 else Interval(delta, -1.0, -end)
    variance = _delta_variance(signs, delta)
    root = z * math.sqrt(variance) * math.sqrt((1 - delta**2) ** 2 + z * z * variance)
    scale = 1 - delta**2 + z * z * variance
    low, high = (delta - delta**3 - root) / scale, (delta - delta**3 + root) / scale
    return Interval(delta, max(low, -1.0), min(high, 1.0))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return adjusted p in the given order: the running maximum of (m − i) p_(i), at most 1 (Holm 1979).

    Give all tests of a verdict at once, over pairs and metrics.  NaN, the p of a test without data, stays NaN
    and does not count as a test: no hypothesis was tested there.

    Raises ValueError for p outside [0, 1].
    """
    p = np.asarray(p_values, dtype=float)
    if np.any((p < 0) | (p > 1)):
        raise ValueError(f"p must be in [0, 1], got {p[(p < 0) | (p > 1)][0]:g}")
    tests = np.flatnonzero(~np.isnan(p))
    order = tests[np.argsort(p[tests], kind="stable")]
    adjusted = np.full(len(p), np.nan)
    scaled = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return [float(v) for v in adjusted]


def _delta_variance(signs: Array, delta: float) -> float:
    """Return the unbiased variance of δ̂, at least Cliff's (1 − δ²)/(nm − 1)."""
    n, m = signs.shape
    rows, columns = signs.mean(axis=1) - delta, signs.mean(axis=0) - delta
    each = np.sum((signs - delta) ** 2)
    unbiased = (m**2 * np.sum(rows**2) + n**2 * np.sum(columns**2) - each) / (n * m * (n - 1) * (m - 1))
    return float(max(unbiased, (1 - delta**2) / (n * m - 1)))

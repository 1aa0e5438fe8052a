"""The distribution of values over trials: the empirical one with its band."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ahf_cli.report.statistics.interval import LEVEL
from ahf_cli.report.statistics.moments import Array


class Distribution(NamedTuple):
    """F̂ just after each distinct value, with its band."""

    value: Array
    share: Array
    low: Array
    high: Array


def empirical_distribution(values: ArrayLike, n: int | None = None, level: float = LEVEL) -> Distribution:
    """F̂(x) = #{xᵢ ≤ x}/n with the simultaneous band ± √(ln(2/(1−level))/(2n)).

    Dvoretzky, Kiefer and Wolfowitz 1956 with Massart's 1990 constant: the whole true distribution lies in the
    band with at least this probability.  `n` counts values that are not listed, such as targets never met.
    The band is NaN for n < 2.
    """
    x = np.asarray(values, dtype=float)
    distinct, counts = np.unique(x[np.isfinite(x)], return_counts=True)
    total = n if n is not None else len(x)
    share = np.cumsum(counts) / total if total else np.empty(0)
    half = math.sqrt(math.log(2 / (1 - level)) / (2 * total)) if total >= 2 else math.nan
    return Distribution(distinct, share, np.maximum(share - half, 0), np.minimum(share + half, 1))


def rank_correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's ρ: Pearson's correlation of the mid-ranks of pairs (n,); NaN without spread or for n < 3."""
    a, b = _ranks(np.asarray(x, dtype=float)), _ranks(np.asarray(y, dtype=float))
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / math.sqrt(float((a @ a) * (b @ b))))


def _ranks(x: Array) -> Array:
    """Mid-ranks: equal values share the mean of their places."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse])

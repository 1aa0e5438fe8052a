"""One sample of final values, (trials,): moments, distribution, rank correlation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from ahf_cli.report.statistics.trajectory import Array

LEVEL = 0.95


@dataclass(frozen=True)
class Summary:
    """Final values of one metric over the trials of one recipe."""

    mean: float
    standard_error: float
    """s/√n with the unbiased variance s²; NaN for fewer than two values"""
    standard_deviation: float
    median: float
    best: float
    worst: float


def summarize(values: ArrayLike, better: Literal["lower", "higher"]) -> Summary:
    """Return a summary of final values (trials,); NaN counts as no value."""
    x = np.asarray(values, dtype=float)
    used = x[~np.isnan(x)]
    ends = (float(used.min()), float(used.max())) if len(used) else (np.nan, np.nan)
    best, worst = ends if better == "lower" else ends[::-1]
    moments = pd.Series(used, dtype=float).agg(["mean", "sem", "std", "median"])
    return Summary(
        mean=moments["mean"], standard_error=moments["sem"], standard_deviation=moments["std"],
        median=moments["median"], best=best, worst=worst,
    )  # fmt: skip


def interquartile_mean(values: ArrayLike) -> Array:
    """Mean of the middle half of values (n, …) over axis 0, with partial weights at its ends.

    It is the mean of the quantile function between ¼ and ¾: the IQM of Agarwal et al. 2021 ("Deep
    reinforcement learning at the edge of the statistical precipice"), for any n.  No value may be missing.
    """
    x = np.sort(np.asarray(values, dtype=float), axis=0)
    n = len(x)
    if n == 0:
        return np.full(x.shape[1:], np.nan)
    edges = np.arange(n + 1) / n
    weights = np.diff(np.clip(edges, 0.25, 0.75)) * 2
    return np.asarray(np.tensordot(weights, x, axes=(0, 0)))


class Distribution(NamedTuple):
    """F̂ just after each distinct value, with its band."""

    value: Array
    share: Array
    low: Array
    high: Array


def empirical_distribution(values: ArrayLike, n: int | None = None, level: float = LEVEL) -> Distribution:
    """F̂(x) = #{xᵢ ≤ x}/n with the simultaneous band ± √(ln(2/(1−level))/(2n)).

    The whole true distribution lies in the band with at least the probability `level` (Dvoretzky, Kiefer and
    Wolfowitz 1956, with Massart's constant of 1990).  `n` may exceed the number of
    values, since costs of unmet targets are not listed.  The band is NaN for n < 2.
    """
    x = np.asarray(values, dtype=float)
    distinct, counts = np.unique(x[np.isfinite(x)], return_counts=True)
    total = n if n is not None else len(x)
    share = np.cumsum(counts) / total if total else np.empty(0)
    half = math.sqrt(math.log(2 / (1 - level)) / (2 * total)) if total >= 2 else math.nan
    return Distribution(distinct, share, np.maximum(share - half, 0), np.minimum(share + half, 1))


def rank_correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's ρ: Pearson's correlation of the mid-ranks of pairs (n,); NaN without spread or for n < 3."""
    pairs = pd.DataFrame({"x": np.asarray(x, dtype=float), "y": np.asarray(y, dtype=float)})
    return float(pairs.corr(method="spearman", min_periods=3).to_numpy()[0, 1])


def dependence(x: ArrayLike, y: ArrayLike) -> float:
    """p of the hypothesis that y does not depend on x, for independent pairs (n,), n ≥ 12.

    p is twice the smaller of two: that of Spearman's ρ (t approximation), and that of Kruskal and Wallis 1952
    between the thirds of x, which sees a best x within the range.  NaN if x has no spread, 1 if y has none.
    """
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if np.ptp(a) == 0:
        return math.nan
    if np.ptp(b) == 0:
        return 1.0
    # Equal x have equal ranks, and so lie in the same third.
    third = np.minimum((stats.rankdata(a) - 1) * 3 // len(a), 2)
    groups = [b[third == k] for k in np.unique(third)]
    found = [stats.spearmanr(a, b).pvalue, *([stats.kruskal(*groups).pvalue] if len(groups) > 1 else [])]
    return float(min(1.0, 2 * min(found)))

"""Samples of two clusters: some trials trained, the others did not."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ahf_cli.report.statistics.interval import Interval, mean_interval, wilson_interval
from ahf_cli.report.statistics.sample import LEVEL

MIXED = (0.02, 0.98)
"""shares trained between which a sample has two clusters"""
FEWEST_TRAINED = 5
"""least trials for an interval of the mean of those that trained; docs/statistics.md has the reason"""


class Clusters(NamedTuple):
    """The share trained, the mean of those that trained and the mean of all trials."""

    n: int
    trained: int
    share: Interval
    """trained/n with Wilson's interval"""
    mean_trained: Interval
    """mean of those that trained with its interval; NaN ends below `FEWEST_TRAINED`"""
    mean: Interval
    """mean of all values with its interval; NaN ends where `two_clusters` holds"""


def two_clusters(trained: int, n: int) -> bool:
    """Return whether the share trained of n trials is strictly between 0.02 and 0.98; False for n = 0.

    Raises ValueError unless 0 ≤ trained ≤ n.
    """
    if not 0 <= trained <= n:
        raise ValueError(f"trained must be in [0, n = {n}], got {trained}")
    return n > 0 and MIXED[0] < trained / n < MIXED[1]


def cluster_summary(values: ArrayLike, trained: ArrayLike, level: float = LEVEL) -> Clusters:
    """Return the share and the means of final values (n,) by the outcomes `trained` (n,), true or false.

    Trials without a value (NaN) count in the share, and are left out of the means.  A machine's failure is
    no outcome: leave it out of both arrays.

    Raises ValueError for arrays of different shapes.
    """
    x, mask = np.asarray(values, dtype=float), np.asarray(trained, dtype=bool)
    if x.ndim != 1 or x.shape != mask.shape:
        raise ValueError(f"values and trained must have one shape (n,), got {x.shape} and {mask.shape}")
    n, count = len(x), int(mask.sum())
    some = x[mask & ~np.isnan(x)]
    those, everyone = mean_interval(some, level), mean_interval(x, level)
    if len(some) < FEWEST_TRAINED:
        those = _without_ends(those)
    if two_clusters(count, n):
        everyone = _without_ends(everyone)
    return Clusters(n, count, wilson_interval(count, n, level), those, everyone)


def _without_ends(found: Interval) -> Interval:
    return Interval(found.estimate, math.nan, math.nan)

"""Samples of two clusters: some trials trained, the others did not."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ahf_cli.report.statistics.interval import Interval, mean_interval
from ahf_cli.report.statistics.sample import LEVEL

MIXED = (0.02, 0.98)
"""shares trained between which a sample has two clusters"""
FEWEST_TRAINED = 5
"""least trials for an interval of the mean of those that trained; docs/statistics.md has the reason"""


def two_clusters(trained: int, n: int) -> bool:
    """Return whether the share trained of n trials is strictly between 0.02 and 0.98; False for n = 0.

    Raises ValueError unless 0 ≤ trained ≤ n.
    """
    if not 0 <= trained <= n:
        raise ValueError(f"trained must be in [0, n = {n}], got {trained}")
    return n > 0 and MIXED[0] < trained / n < MIXED[1]


def mean_of_all(values: ArrayLike, trained: int, n: int, level: float = LEVEL) -> Interval:
    """Return the mean of final values, of which NaN counts as none; without ends if it has two clusters.

    `trained` of the `n` trials behind the values have trained.
    """
    found = mean_interval(values, level)
    return found.without_ends() if two_clusters(trained, n) else found


def mean_of_trained(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Return the mean of the final values of trained trials; without ends below `FEWEST_TRAINED` values."""
    x = np.asarray(values, dtype=float)
    found = mean_interval(x, level)
    return found if np.count_nonzero(~np.isnan(x)) >= FEWEST_TRAINED else found.without_ends()

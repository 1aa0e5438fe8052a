"""When a curve first meets a target, at what cost."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from ahf_cli.report.statistics.moments import Array


def first_crossing(values: ArrayLike, cost: ArrayLike, target: float, higher: bool = True) -> Array:
    """Cost at the first evaluation that meets the target, per trial (trials,); ∞ for a miss.

    `values` and `cost` are (trials, steps) with NaN after a trial's end.  Crossings are not interpolated:
    what was not evaluated is not known to be met.
    """
    x, c = np.array(values, dtype=float, ndmin=2), np.array(cost, dtype=float, ndmin=2)
    with np.errstate(invalid="ignore"):
        met = (x >= target) if higher else (x <= target)
    where = np.argmax(met, axis=1)
    return np.where(met.any(axis=1), c[np.arange(len(x)), where], math.inf)


def value_at_cost(values: ArrayLike, cost: ArrayLike, at: float) -> Array:
    """Last value known when a cost was spent, per trial (trials,); NaN for a trial that ended before it.

    A trial's curve is a step function of its cost: between two evaluations the earlier one holds.
    """
    x, c = np.array(values, dtype=float, ndmin=2), np.array(cost, dtype=float, ndmin=2)
    known = np.sum((c <= at) & ~np.isnan(c), axis=1)
    spent = np.nanmax(np.where(np.isnan(c), -math.inf, c), axis=1, initial=-math.inf) >= at
    rows = np.arange(len(x))
    return np.where((known > 0) & spent, x[rows, np.maximum(known - 1, 0)], np.nan)

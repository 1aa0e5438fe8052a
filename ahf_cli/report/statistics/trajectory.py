"""Statistics of curves: arrays of shape (trials, evaluations), reduced over the trials, axis 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

Array = NDArray[np.float64]
Band = Literal["se", "sd", "ci", "iqr"]
BANDS: dict[Band, str] = {
    "se": "mean ± 1 standard error over trials",
    "sd": "mean ± 1 standard deviation over trials",
    "ci": "mean with its 95 % interval (Student's t) over trials",
    "iqr": "median with the quartiles over trials",
}
"""Kinds of bands and their descriptions."""


class Centre(NamedTuple):
    """A centre with a band around it, one value per column."""

    centre: Array
    low: Array
    high: Array


def band(values: ArrayLike, kind: Band) -> Centre:
    """Centre and band over the trials, axis 0, of a kind in `BANDS`; missing values (NaN) are left out.

    The band is NaN for n < 2.
    """
    columns = pd.DataFrame(np.asarray(values, dtype=float))
    n, centre = columns.count(), columns.mean()
    if kind == "iqr":
        centre = columns.median()
        with np.errstate(invalid="ignore"):  # a quartile between finite and infinite values is NaN
            low, high = (columns.quantile(q).where(n >= 2) for q in (0.25, 0.75))
    else:
        factors = {"se": 1.0, "sd": np.sqrt(n), "ci": stdtrit(n - 1.0, 0.975)}
        half = columns.sem() * factors[kind]
        low, high = centre - half, centre + half
    return Centre(*(x.to_numpy() for x in (centre, low, high)))


def count(values: ArrayLike) -> NDArray[np.int64]:
    """Return the number of values in each column that are not missing."""
    return np.asarray(np.sum(~np.isnan(np.asarray(values, dtype=float)), axis=0), dtype=np.int64)


def carry_forward(values: ArrayLike, diverged: Sequence[bool] | NDArray[np.bool_], chance: float) -> Array:
    """Return values with chance in place of each diverged trial's values from the first non-finite one.

    `values` is (trials, steps), NaN after a trial's end; other trials are returned as they are.
    """
    x = np.array(values, dtype=float, ndmin=2)
    ended = np.logical_or.accumulate(~np.isfinite(x), axis=1)
    return np.where(ended & np.asarray(diverged, dtype=bool)[:, None], chance, x)


def first_crossing(values: ArrayLike, cost: ArrayLike, target: float, higher: bool = True) -> Array:
    """Cost at the first evaluation that meets the target, per trial (trials,); ∞ for a miss.

    `values` and `cost` are (trials, steps) with NaN after a trial's end.  Crossings are not interpolated
    between evaluations.
    """
    x, c = np.array(values, dtype=float, ndmin=2), np.array(cost, dtype=float, ndmin=2)
    with np.errstate(invalid="ignore"):
        met = (x >= target) if higher else (x <= target)
    where = np.argmax(met, axis=1)
    return np.where(met.any(axis=1), c[np.arange(len(x)), where], math.inf)


def value_at_cost(values: ArrayLike, cost: ArrayLike, at: float) -> Array:
    """Last evaluated value at a cost, per trial (trials,); NaN for a trial that ended before.

    A trial's curve is a step function of its cost: between two evaluations the earlier one holds.
    """
    x, c = np.array(values, dtype=float, ndmin=2), np.array(cost, dtype=float, ndmin=2)
    known = np.sum((c <= at) & ~np.isnan(c), axis=1)
    spent = np.nanmax(np.where(np.isnan(c), -math.inf, c), axis=1, initial=-math.inf) >= at
    rows = np.arange(len(x))
    return np.where((known > 0) & spent, x[rows, np.maximum(known - 1, 0)], np.nan)

"""A centre with a band around it at each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ahf_cli.report.statistics.moments import (
    Array,
    count,
    mean_and_standard_error,
    median,
    quantile,
    standard_deviation,
)
from ahf_cli.report.statistics.student import student_quantile

Band = Literal["se", "sd", "ci", "iqr"]
BANDS: dict[Band, str] = {
    "se": "mean ± 1 standard error over trials",
    "sd": "mean ± 1 standard deviation over trials",
    "ci": "mean with its 95 % interval (Student's t) over trials",
    "iqr": "median with the quartiles over trials",
}
"""The bands, and what they are in words."""


class Centre(NamedTuple):
    """A centre with a band around it, one value per column."""

    centre: Array
    low: Array
    high: Array


def band(values: ArrayLike, kind: Band) -> Centre:
    """Centre and band over the trials, axis 0, as `BANDS` says; the band is NaN for n < 2."""
    if kind == "iqr":
        enough = count(values) >= 2
        low, high = (np.where(enough, quantile(values, q), np.nan) for q in (0.25, 0.75))
        return Centre(median(values), low, high)
    centre, error = mean_and_standard_error(values)
    if kind == "sd":
        half = standard_deviation(values)
    else:
        half = error if kind == "se" else error * _student_factors(count(values))
    return Centre(centre, centre - half, centre + half)


def carry_forward(values: ArrayLike, diverged: Sequence[bool] | NDArray[np.bool_], chance: float) -> Array:
    """Fill each diverged trial, from its first value that is not finite, with the value of chance.

    `values` is (trials, steps), NaN after a trial's end; other trials are returned as they are.
    """
    x = np.array(values, dtype=float, ndmin=2)
    ended = np.logical_or.accumulate(~np.isfinite(x), axis=1)
    return np.where(ended & np.asarray(diverged, dtype=bool)[:, None], chance, x)


def _student_factors(n: NDArray[np.int64]) -> Array:
    """Return t_{n−1} at 97.5 % for each n; NaN below 2."""
    return np.asarray([student_quantile(0.975, float(k) - 1) for k in n.ravel()]).reshape(n.shape)

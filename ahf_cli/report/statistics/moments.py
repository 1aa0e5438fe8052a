"""Moments and quantiles of columns: arrays of shape (trials,) or (trials, steps), reduced over axis 0.

NaN means that a value is missing: it is left out and not counted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def count(values: ArrayLike) -> NDArray[np.int64]:
    """Count the values in each column that are not missing."""
    return np.asarray(np.sum(~np.isnan(np.asarray(values, dtype=float)), axis=0), dtype=np.int64)


def mean(values: ArrayLike) -> Array:
    """Σᵢ xᵢ / n over the trials, axis 0; NaN where there is none."""
    x = np.asarray(values, dtype=float)
    return _divide(np.nansum(x, axis=0), count(x))


def standard_deviation(values: ArrayLike) -> Array:
    """√(Σᵢ (xᵢ − x̄)² / (n − 1)) over the trials, axis 0; NaN for n < 2 (unbiased variance, Bessel)."""
    x = np.asarray(values, dtype=float)
    with np.errstate(invalid="ignore"):  # inf − inf
        squares = np.nansum((x - mean(x)) ** 2, axis=0)
    return np.sqrt(_divide(squares, count(x) - 1))


def mean_and_standard_error(values: ArrayLike) -> tuple[Array, Array]:
    """Mean and s/√n over the trials, axis 0; the error is NaN for n < 2, never 0."""
    n = count(values)
    return mean(values), _divide(standard_deviation(values), np.sqrt(n))


def quantile(values: ArrayLike, q: float) -> Array:
    """Quantile over the trials, axis 0, linear between order statistics (Hyndman and Fan 1996, type 7)."""
    x = np.asarray(values, dtype=float)
    n, ordered = count(x), np.sort(x, axis=0)  # NaN sorts last
    if len(x) == 0:
        return np.full(x.shape[1:], np.nan)
    position = q * np.maximum(n - 1, 0)
    below = np.floor(position).astype(int)
    low, high = _row(ordered, below), _row(ordered, np.minimum(below + 1, np.maximum(n - 1, 0)))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(low == high, low, low + (position - below) * (high - low)))


def median(values: ArrayLike) -> Array:
    """Median over the trials, axis 0."""
    return quantile(values, 0.5)


def _divide(numerator: ArrayLike, n: ArrayLike) -> Array:
    """Quotient; NaN where n ≤ 0."""
    n = np.asarray(n, dtype=float)
    return np.asarray(np.where(n > 0, numerator, np.nan) / np.where(n > 0, n, 1))


def _row(ordered: Array, index: NDArray[np.int64]) -> Array:
    """Pick row `index` of each column."""
    return np.asarray(np.take_along_axis(ordered, np.asarray(index)[None, ...], axis=0)[0])

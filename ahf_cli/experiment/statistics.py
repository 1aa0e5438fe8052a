"""Statistics over trials: plain NumPy, arrays of shape (trials,) or (trials, steps), no hidden state.

NaN means that a value is missing: it is left out and not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Band = Literal["se", "sd", "iqr"]
BANDS: dict[Band, str] = {
    "se": "mean ± 1 standard error over trials",
    "sd": "mean ± 1 standard deviation over trials",
    "iqr": "median with the quartiles over trials",
}
"""The bands, and what they are in words."""


class Centre(NamedTuple):
    """A centre with a band around it, one value per column."""

    centre: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class Summary:
    """Final values of one metric over the trials of one recipe."""

    n: int
    """values that mean, median and the rest are taken over"""
    ok: int
    diverged: int
    failed: int
    mean: float
    standard_error: float
    """NaN for fewer than two values, as `standard_deviation`"""
    standard_deviation: float
    median: float
    best: float
    worst: float


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


def band(values: ArrayLike, kind: Band) -> Centre:
    """Centre and band over the trials, axis 0, as `BANDS` says; the band is NaN for n < 2."""
    if kind == "iqr":
        enough = count(values) >= 2
        low, high = (np.where(enough, quantile(values, q), np.nan) for q in (0.25, 0.75))
        return Centre(median(values), low, high)
    centre, error = mean_and_standard_error(values)
    half = error if kind == "se" else standard_deviation(values)
    return Centre(centre, centre - half, centre + half)


def carry_forward(values: ArrayLike, diverged: Sequence[bool] | NDArray[np.bool_], chance: float) -> Array:
    """Fill each diverged trial, from its first value that is not finite, with the value of chance.

    `values` is (trials, steps), NaN after a trial's end; other trials are returned as they are.
    """
    x = np.array(values, dtype=float, ndmin=2)
    ended = np.logical_or.accumulate(~np.isfinite(x), axis=1)
    return np.where(ended & np.asarray(diverged, dtype=bool)[:, None], chance, x)


def summarize(
    values: ArrayLike,
    status: Sequence[str],
    better: Literal["lower", "higher"],
    chance: float | None = None,
) -> Summary:
    """Sum up final values (trials,); diverged trials count as `chance`, or are left out where it is None.

    Failed trials are counted and take no part in the rest.
    """
    x, kinds = np.asarray(values, dtype=float), np.asarray(status, dtype=str)
    used = x[kinds == "ok"]
    if chance is not None:
        used = np.append(used, np.full(np.sum(kinds == "diverged"), chance))
    used = used[~np.isnan(used)]
    ends = (float(used.min()), float(used.max())) if len(used) else (np.nan, np.nan)
    best, worst = ends if better == "lower" else ends[::-1]
    centre, error = mean_and_standard_error(used)
    return Summary(
        n=len(used),
        ok=int(np.sum(kinds == "ok")),
        diverged=int(np.sum(kinds == "diverged")),
        failed=int(np.sum(kinds == "failed")),
        mean=float(centre),
        standard_error=float(error),
        standard_deviation=float(standard_deviation(used)),
        median=float(median(used)),
        best=best,
        worst=worst,
    )


def _divide(numerator: ArrayLike, n: ArrayLike) -> Array:
    """Quotient; NaN where n ≤ 0."""
    n = np.asarray(n, dtype=float)
    return np.asarray(np.where(n > 0, numerator, np.nan) / np.where(n > 0, n, 1))


def _row(ordered: Array, index: NDArray[np.int64]) -> Array:
    """Pick row `index` of each column."""
    return np.asarray(np.take_along_axis(ordered, np.asarray(index)[None, ...], axis=0)[0])

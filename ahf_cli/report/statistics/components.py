"""Variance components of a crossed table: D draws of hyperparameters × S seeds, each pair trained.

The model is y_ij = μ + d_i + s_j + e_ij with independent random effects of draw, seed and the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import chdtri, fdtri, stdtrit

from ahf_cli.report.statistics.clusters import two_clusters
from ahf_cli.report.statistics.interval import Interval
from ahf_cli.report.statistics.sample import LEVEL
from ahf_cli.report.statistics.trajectory import Array


@dataclass(frozen=True)
class Component:
    """A variance component with its interval, which holds for normal effects."""

    variance: Interval
    """in squared units of the values, ≥ 0"""
    unbiased: float
    """estimate from mean squares; if it is negative, `variance` is 0 and `share` counts it as 0"""
    share: float
    """part of the sum of all components, in [0, 1]; NaN without spread"""

    @property
    def negative(self) -> bool:
        """Whether the unbiased estimate is below 0, so that 0 is reported in its place."""
        return self.unbiased < 0

    @property
    def deviation(self) -> Interval:
        """Standard deviation √variance with its interval, in units of the values."""
        return Interval(*(math.sqrt(value) for value in self.variance))


@dataclass(frozen=True)
class Crossed:
    """The mean and the variance components of a crossed table."""

    draws: int
    seeds: int
    repeats: int
    mean: Interval
    """holds for new draws and new seeds"""
    components: dict[str, Component]
    """draw, seed and rest; with repeats draw, seed, interaction and retraining"""


def crossed(values: ArrayLike, trained: ArrayLike | None = None, level: float = LEVEL) -> Crossed:
    """Two-way random-effects analysis of values (D, S), or (D, S, r) with r ≥ 2 trainings of every pair.

    The rest is interaction and retraining together; repeats separate them.  Estimates are those of the
    analysis of variance, cut at 0.  The interval of the smallest component is exact (χ²), and that of the
    others is the modified large-sample interval of Ting et al. 1990 (Burdick and Graybill 1992).

    Var(ȳ) = σ²_draw/D + σ²_seed/S + σ²_rest/(DS) gives the mean's t interval, whose degrees of freedom are
    Satterthwaite's (1946) over the components above 0.  Effects are assumed to be normal.  There is no
    interval without spread, or where `trained`, of the shape of `values`, shows two clusters.

    Raises:
        ValueError: fewer than two draws or seeds, one repeat, or a cell without a finite value.
    """
    y = _table(values)
    D, S, r = y.shape
    first = y[0, 0, 0]
    y = y - first  # equal values become exactly 0
    cells = y.mean(axis=2)
    mean = float(cells.mean())
    rows, columns = cells.mean(axis=1), cells.mean(axis=0)
    residuals = cells - rows[:, None] - columns + mean
    freedom = {"draw": D - 1, "seed": S - 1, "rest": (D - 1) * (S - 1), "retraining": D * S * (r - 1)}
    sums = {
        "draw": r * S * _square(rows - mean),
        "seed": r * D * _square(columns - mean),
        "rest": r * _square(residuals),
        "retraining": _square(y - cells[:, :, None]),
    }
    squares = {name: (sums[name] / n, n) for name, n in freedom.items() if n}
    found = {
        "draw": _difference(squares["draw"], squares["rest"], r * S, level),
        "seed": _difference(squares["seed"], squares["rest"], r * D, level),
    }
    if r == 1:
        found["rest"] = _alone(squares["rest"], level)
    else:
        found["interaction"] = _difference(squares["rest"], squares["retraining"], r, level)
        found["retraining"] = _alone(squares["retraining"], level)
    half = _half_width(squares, level) / math.sqrt(y.size)
    known = np.ptp(y) > 0 and not (trained is not None and _mixed(trained, np.shape(values)))
    centre = float(first) + mean
    interval = Interval(centre, *((centre - half, centre + half) if known else (math.nan, math.nan)))
    total = sum(max(estimate, 0.0) for estimate, _, _ in found.values())
    return Crossed(D, S, r, interval, {k: _component(v, total, bool(known)) for k, v in found.items()})


def _table(values: ArrayLike) -> Array:
    """Return the values as (D, S, r); ValueError unless they are a whole crossed table."""
    y = np.asarray(values, dtype=float)
    if y.ndim not in (2, 3):
        raise ValueError(f"crossed needs values of shape (draws, seeds[, repeats]), got {y.shape}")
    for count, name in zip(y.shape, ("draws", "seeds", "repeats"), strict=False):
        if count < 2:
            raise ValueError(f"crossed needs at least 2 {name}, got {count}")
    y = y.reshape(*y.shape[:2], -1)
    missing = np.argwhere(~np.isfinite(y))
    if len(missing):
        draw, seed, _ = missing[0]
        raise ValueError(f"crossed needs a value in every cell; draw {draw}, seed {seed} lacks one")
    return y


def _mixed(trained: ArrayLike, shape: tuple[int, ...]) -> bool:
    mask = np.asarray(trained, dtype=bool)
    if mask.shape != shape:
        raise ValueError(f"trained must have the shape of values, {shape}, got {mask.shape}")
    return two_clusters(int(mask.sum()), mask.size)


def _square(x: Array) -> float:
    return float(np.sum(x * x))


MeanSquare = tuple[float, int]
"""a mean square and its degrees of freedom"""


def _alone(square: MeanSquare, level: float) -> Interval:
    """Return S² with n S²/χ²_n (Student's exact interval of a variance)."""
    value, n = square
    tail = (1 - level) / 2
    return Interval(value, value * n / chdtri(n, tail), value * n / chdtri(n, 1 - tail))


def _difference(larger: MeanSquare, smaller: MeanSquare, times: int, level: float) -> Interval:
    """Return (S₁² − S₂²)/times with the interval of Ting et al. 1990.

    Its lower end is above 0 exactly where the F test of S₁²/S₂² rejects.
    """
    (one, n), (two, m) = larger, smaller
    weights = _weights(n, m, (1 - level) / 2)
    down, up = (math.sqrt(max(a * one**2 + b * two**2 + c * one * two, 0.0)) for a, b, c in weights)
    estimate = one - two
    return Interval(estimate / times, (estimate - down) / times, (estimate + up) / times)


@lru_cache
def _weights(n: int, m: int, tail: float) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return the weights of S₁⁴, S₂⁴ and S₁²S₂² in the squared distances to the two ends."""
    g = [1 - k / chdtri(k, tail) for k in (n, m)]
    h = [k / chdtri(k, 1 - tail) - 1 for k in (n, m)]
    high, low = float(fdtri(n, m, 1 - tail)), float(fdtri(n, m, tail))
    below = ((high - 1) ** 2 - (g[0] * high) ** 2 - h[1] ** 2) / high
    above = ((1 - low) ** 2 - (h[0] * low) ** 2 - g[1] ** 2) / low
    return (g[0] ** 2, h[1] ** 2, below), (h[0] ** 2, g[1] ** 2, above)


def _half_width(squares: dict[str, MeanSquare], level: float) -> float:
    """Return t · √(DSr · Var(ȳ)) with the components below 0 left out."""
    rest, n = squares["rest"]
    variance, spread = rest, rest**2 / n
    for name in ("draw", "seed"):
        square, m = squares[name]
        if square > rest:
            variance += square - rest
            spread += square**2 / m
    if variance == 0:
        return math.nan
    return float(stdtrit(variance**2 / spread, (1 + level) / 2)) * math.sqrt(variance)


def _component(found: Interval, total: float, known: bool) -> Component:
    estimate, low, high = found
    ends = (max(low, 0.0), max(high, 0.0)) if known else (math.nan, math.nan)
    share = max(estimate, 0.0) / total if total > 0 else math.nan
    return Component(Interval(max(estimate, 0.0), *ends), estimate, share)

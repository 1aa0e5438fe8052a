"""Coverage of the interval of a share, exact by the binomial distribution."""

from __future__ import annotations

import numpy as np
from scipy.stats import binom

from ahf_cli.report.statistics.interval import wilson_interval

HEAD = ("interval", "n", "mean over shares", "least", "at share")
GRID = np.linspace(0.02, 0.98, 97)
"""shares of the means"""
SIZES = (10, 20, 70)


def rows() -> list[list[str]]:
    """Return the rows of the table as text."""
    return [share_row(n) for n in SIZES]


def share_row(n: int) -> list[str]:
    """Coverage of Wilson's interval over all outcomes."""
    one = np.array([wilson_interval(x, n)[1:] for x in range(n + 1)])
    inside = (one[:, :1] <= GRID) & (one[:, 1:] >= GRID)
    found = np.sum(inside * binom.pmf(np.arange(n + 1)[:, None], n, GRID), axis=0)
    worst = int(np.argmin(found.round(9)))  # mirrored shares tie, up to a rounding that differs by machine
    return ["share", str(n), f"{found.mean():.3f}", f"{found[worst]:.3f}", f"{GRID[worst]:.2f}"]

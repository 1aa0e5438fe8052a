"""Curves as one line of text."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: ArrayLike, low: float, high: float, width: int = 16) -> str:
    """Draw values (n,) between two levels as up to `width` blocks; beyond them the lowest or highest.

    A value that is missing is a space.  More values than blocks are averaged in equal parts.
    """
    x = np.asarray(values, dtype=float)
    if not len(x) or not high > low:
        return ""
    parts = np.array_split(x, min(width, len(x)))
    means = np.array([part[~np.isnan(part)].mean() if (~np.isnan(part)).any() else np.nan for part in parts])
    place = np.clip((means - low) / (high - low), 0, 1) * (len(BLOCKS) - 1)
    return "".join(" " if np.isnan(p) else BLOCKS[round(float(p))] for p in place)

"""Final values of one metric over the trials of one recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ahf_cli.report.statistics.moments import mean_and_standard_error, median, standard_deviation


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

"""Outcomes of the trials of a study, those of older versions from their steps, and the values that count."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from ahf_cli.tasks.metrics import Column
from ahf_cli.training.outcome import UNKNOWN, outcome_of


def with_outcomes(
    trials: pd.DataFrame,
    metric: Column,
    steps_of: Callable[[pd.DataFrame], pd.DataFrame],
    task: Mapping[str, Any],
) -> pd.DataFrame:
    """Return the trials with the columns `still_from` and `outcome`; see `outcome_of`.

    Args:
        trials: as in `results_frame`.
        metric: the headline.
        steps_of: reads the steps of some trials; asked only for untrained trials of older versions.
        task: section `task` of the identity, which gives the length of the initial weights.
    """
    if not len(trials):
        return trials.assign(still_from=pd.Series(dtype=int), outcome=pd.Series(dtype=str))
    still = trials["still_from"] if "still_from" in trials else pd.Series(UNKNOWN, trials.index)
    still = still.fillna(UNKNOWN).astype(int)
    outcome = _outcomes(trials, still, metric)
    old = (still == UNKNOWN) & outcome.isin(["did not train", "diverged"])
    if old.any():
        from ahf_cli.tasks.task import initial_length  # imports torch

        length = initial_length(task, int(trials["seed"].iloc[0]))
        if length is not None:
            steps = steps_of(trials[old])
            for (recipe, trial), own in steps.groupby(["recipe", "trial"], sort=False):
                found = stands_still_from(own, length)
                still[(trials["recipe"] == recipe) & (trials["trial"] == trial)] = found
            outcome = _outcomes(trials, still, metric)
    return trials.assign(still_from=still.clip(lower=0), outcome=outcome)


def _outcomes(trials: pd.DataFrame, still: pd.Series[int], metric: Column) -> pd.Series[str]:
    values = trials[metric.column] if metric.column in trials else pd.Series(np.nan, trials.index)
    rows = zip(trials["status"], ~trials["stalled"].astype(bool), still, values.astype(float), strict=True)
    return pd.Series([outcome_of(*row, metric) for row in rows], trials.index, dtype=object)


def stands_still_from(steps: pd.DataFrame, length: float) -> int:
    """Return the first step of the last unbroken run of updates with ‖u‖ ≤ ε ‖θ₀‖; 0 without one.

    Steps with an update that is not finite are left out.  ε is that of float32.
    """
    ordered = steps.sort_values("step")
    ordered = ordered[np.isfinite(ordered["update_l2"].to_numpy(float))]
    moved = np.flatnonzero(ordered["update_l2"].to_numpy(float) > np.finfo(np.float32).eps * length)
    first = int(moved[-1]) + 1 if len(moved) else 0
    return int(ordered["step"].iloc[first]) if first < len(ordered) else 0


def at_baseline(trials: pd.DataFrame, metric: Column) -> pd.Series[float]:
    """Return final values: a diverged one, and any worse than the baseline, at the baseline.

    Without a baseline a diverged trial has no value.  A failed trial never has one.
    """
    values = capped(trials[metric.column].astype(float), metric)
    counted = math.nan if metric.baseline is None else metric.baseline
    return values.where(trials["status"] == "ok", counted).where(trials["status"] != "failed")


Values = TypeVar("Values", "pd.Series[float]", pd.DataFrame)


def capped(values: Values, metric: Column) -> Values:
    """Return values, each at least as good as the baseline if the metric has one."""
    if metric.baseline is None:
        return values
    low, high = (None, metric.baseline) if metric.better == "lower" else (metric.baseline, None)
    return values.clip(low, high)

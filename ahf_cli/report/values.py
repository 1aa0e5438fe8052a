"""Columns of trials as tables and figures use them: final values, and objectives in words."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from ahf_cli.tasks.metrics import Column


def recipe_names(trials: pd.DataFrame, planned: Mapping[str, int]) -> list[str]:
    """Names of the planned recipes, then of others that have trials."""
    return list(dict.fromkeys([*planned, *trials["recipe"]]))


def at_baseline(trials: pd.DataFrame, metric: Column) -> pd.Series[float]:
    """Return final values with each diverged trial at the baseline; NaN for failed ones.

    Without a baseline a diverged trial has no value.
    """
    values = trials[metric.column].astype(float)
    counted = math.nan if metric.baseline is None else metric.baseline
    return values.where(trials["status"] == "ok", counted).where(trials["status"] != "failed")


def ranked(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the finished trials, with the capped objective that the sampler was told in `value`."""
    return trials[trials["status"] != "failed"].astype({"value": float})

"""Centre and band at each evaluation or step: the data of a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ahf_cli.report.statistics import Array, Band, band, carry_forward, count
from ahf_cli.tasks.metrics import Column


def line_frame(head: Mapping[str, Any], values: Array, kind: Band) -> pd.DataFrame:
    """Number of values, centre and band of each column of (trials, points), after the columns of `head`."""
    centre, low, high = band(values, kind)
    return pd.DataFrame({**head, "n": count(values), "centre": centre, "low": low, "high": high})


def curve_table(curves: pd.DataFrame, metric: Column, kind: Band) -> pd.DataFrame:
    """Centre and band of one metric at each evaluation of each recipe: the data of a line with its band.

    `curves` is as of `curves_frame`; diverged trials are carried forward at the baseline,
    or end where there is none; failed ones are left out.
    Columns: metric, recipe, step, n, centre, low, high.
    """
    frames = []
    curves = curves[curves["status"] != "failed"]
    for recipe, own in curves.groupby("recipe", sort=False):
        # With every trial diverged, the recipe's own evaluations end too early.
        whole = own if (own["status"] == "ok").any() else curves
        steps = np.sort(whole["step"].unique())
        values = own.pivot_table(index="trial", columns="step", values=metric.column, dropna=False)
        values = values.reindex(columns=steps)
        diverged = own.groupby("trial")["status"].first().reindex(values.index) == "diverged"
        counted = np.nan if metric.baseline is None else metric.baseline
        filled = carry_forward(values.to_numpy(), diverged.to_numpy(), counted)
        frames.append(line_frame({"metric": metric.column, "recipe": recipe, "step": steps}, filled, kind))
    columns = ["metric", "recipe", "step", "n", "centre", "low", "high"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def step_table(steps: pd.DataFrame, columns: list[str], kind: Band) -> pd.DataFrame:
    """Centre and band of some columns of `steps.csv.gz` at each step, over the trials that reached it.

    Columns: quantity, step, n, centre, low, high.
    """
    frames = []
    for column in columns:
        values = steps.pivot_table(index="trial", columns="step", values=column, dropna=False)
        x = values.replace([np.inf, -np.inf], np.nan).to_numpy()
        frames.append(line_frame({"quantity": column, "step": values.columns}, x, kind))
    return pd.concat(frames, ignore_index=True)

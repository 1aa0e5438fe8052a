"""Time to a target, and values at equal cost: by steps, work and seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ahf_cli.report.statistics import (
    Array,
    first_crossing,
    mean_interval,
    median_interval,
    value_at_cost,
    wilson_interval,
)
from ahf_cli.report.tables.text import Table, number, spread_interval, within
from ahf_cli.tasks.metrics import Column, Metrics

COSTS = {
    "step": "steps",
    "work": "gradients and curvature products",
    "seconds": "training time (s, evaluation excluded)",
}
"""Columns of a curve that something is spent in, and their labels.

A curvature product costs what a gradient costs (docs/performance.md), so their sum is what recipes with and
without linear systems have in common, whatever else the machine does.
"""
PLURAL = {"step": "steps"}


def with_work(curves: pd.DataFrame) -> pd.DataFrame:
    """Add the column `work`: gradients and curvature products so far."""
    return curves.assign(work=curves["gradients"] + curves["products"])


def crossing_table(curves: pd.DataFrame, names: list[str], target: float, metric: Column) -> pd.DataFrame:
    """Cost at which each trial first met the target of the headline: recipe, trial, and one column a cost.

    ∞ where it never did.  A crossing counts when it is evaluated, also in a trial that diverged later.
    """
    frames = []
    for name in names:
        own = curves[(curves["recipe"] == name) & (curves["status"] != "failed")]
        if not len(own):
            continue
        sign = 1 if metric.better == "higher" else -1
        values = sign * _matrix(own, metric.column)
        met = {cost: first_crossing(values, _matrix(own, cost), sign * target) for cost in COSTS}
        frames.append(pd.DataFrame({"recipe": name, "trial": np.sort(own["trial"].unique()), **met}))
    return (
        pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["recipe", "trial", *COSTS])
    )


def target_table(curves: pd.DataFrame, names: list[str], target: float, metric: Column) -> Table:
    """Return how many trials met the target, and the median cost over all trials (∞: most never did)."""
    crossings = crossing_table(curves, names, target, metric)
    rows = []
    for name in names:
        own = crossings[crossings["recipe"] == name]
        met = int(np.isfinite(own["step"].to_numpy(float)).sum())
        row = {"recipe": name, "n": len(own), "met": met} | spread_interval(
            "share", wilson_interval(met, len(own))
        )
        for cost in COSTS:
            row |= spread_interval(cost, median_interval(own[cost].to_numpy(float)))
        rows.append(row)
    numbers = pd.DataFrame(rows)
    text = {"recipe": numbers["recipe"], "met": [f"{r.met} of {r.n}" for r in numbers.itertuples()]}
    text["share, 95 %"] = [within(row, "share", 2) for row in numbers.to_dict("records")]
    for cost, digits in zip(COSTS, (0, 0, 1), strict=True):
        text[f"median {cost}, 95 %"] = [within(row, cost, digits) for row in numbers.to_dict("records")]
    title = f"Time to {metric.label} {target:g} (∞: never)"
    return Table("time_to_target", numbers, {title: pd.DataFrame(text)})


def equal_cost_table(curves: pd.DataFrame, names: list[str], metrics: Metrics) -> Table:
    """Headline and training loss when every recipe has spent the same, in each cost.

    The cost is the least over the recipes of the median total: half the trials of each have spent that much.
    A trial that stopped training before counts with its last value, a diverged one at the baseline.  A recipe
    that had only been evaluated before its first step has no value there.
    """
    done = curves[curves["status"] != "failed"]
    rows = []
    for cost in COSTS:
        totals = done.groupby(["recipe", "trial"])[cost].max().groupby("recipe").median()
        spent = totals[totals > 0]
        if not len(spent):
            continue
        for name in names:
            own = done[done["recipe"] == name]
            if len(own):
                values = _at(own, cost, spent.min(), metrics)
                if not _evaluated(own, cost, spent.min()):
                    values = dict.fromkeys(values, np.nan) | {"n": values["n"]}
                rows.append({"cost": cost, "at": float(spent.min()), "recipe": name, **values})
    numbers = pd.DataFrame(rows)
    text, headline = {"recipe": names}, metrics.headline
    for cost, digits in zip(COSTS, (0, 0, 1), strict=True):
        own = numbers[numbers["cost"] == cost] if len(numbers) else numbers
        if len(own):
            label = f"{number(own['at'].iloc[0], digits, fixed=True)} {PLURAL.get(cost, cost)}"
            at = {row["recipe"]: row for row in own.to_dict("records")}
            text[f"at {label}"] = [_said(at[name], headline) if name in at else "–" for name in names]
    title = f"{headline.label.capitalize()} at equal cost, mean and 95 %"
    return Table("equal_cost", numbers, {title: pd.DataFrame(text)})


def _at(own: pd.DataFrame, cost: str, spent: float, metrics: Metrics) -> dict[str, float]:
    """Mean of each metric over the trials of one recipe when a cost is spent."""
    found: dict[str, float] = {}
    for metric in metrics.shown:
        values = values_at(own, metric, cost, spent)
        found |= {"n": len(values)} | spread_interval(
            metric.column, mean_interval(values).clipped(0, metric.top)
        )
    return found


def _evaluated(own: pd.DataFrame, cost: str, spent: float) -> bool:
    """Tell whether half the trials of a recipe had been evaluated after a step when a cost was spent."""
    first = own[own["step"] > 0].groupby("trial")[cost].min()
    ended = own.groupby("trial")[cost].max()  # one that diverged before its first evaluation counts as known
    known = (first.astype(float).reindex(ended.index, fill_value=np.inf) <= spent) | (ended < spent)
    return bool(known.mean() >= 0.5)


def _said(row: Mapping[Any, Any], metric: Column) -> str:
    return "not evaluated yet" if np.isnan(row[metric.column]) else within(row, metric.column)


def values_at(own: pd.DataFrame, metric: Column, cost: str, spent: float) -> Array:
    """Return what each trial of one recipe had last been evaluated at when a cost was spent, (trials,).

    A trial that stopped training before counts with its last value, a diverged one at the baseline.
    """
    return values_along(own, metric, cost, np.array([spent]))[:, 0]


def values_along(own: pd.DataFrame, metric: Column, cost: str, spent: Array) -> Array:
    """Return the same for many costs, (trials, costs)."""
    ends = own.sort_values("step").groupby("trial").last()
    diverged = (ends["status"] == "diverged").to_numpy()
    last = np.where(
        diverged, np.nan if metric.baseline is None else metric.baseline, ends[metric.column].to_numpy(float)
    )
    values, costs = _matrix(own, metric.column), _matrix(own, cost)
    known = np.stack([value_at_cost(values, costs, amount) for amount in spent], axis=1)
    return np.where(np.isnan(known), last[:, None], known)


def _matrix(own: pd.DataFrame, column: str) -> Array:
    """Return a column as (trials, evaluations), NaN after a trial's end."""
    once = own.drop_duplicates(["trial", "step"])
    wide = pd.Series(
        once[column].to_numpy(), [once["trial"], once["step"]]
    ).unstack()  # may be the step itself
    return wide.sort_index(axis=1).to_numpy(float)

"""Final values, summed up by recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ahf_cli.report.statistics import iqm_interval, mean_interval, summarize, wilson_interval
from ahf_cli.report.tables.metrics import at_baseline, recipe_names
from ahf_cli.report.tables.text import NOTHING, number, spread_interval, within
from ahf_cli.tasks.metrics import Column, Metrics

AT_CHANCE, LEFT_OUT = "at chance", "left out"


def final_table(trials: pd.DataFrame, planned: Mapping[str, int], metrics: Metrics) -> pd.DataFrame:
    """Sum up final values: one row per metric, recipe and way to treat diverged trials.

    `trials` is as of `trials_frame`.  Columns: metric, recipe, diverged_trials, n (values summed up),
    planned, ok, diverged, failed, stalled (a part of ok), mean, standard_error, standard_deviation, median,
    best, worst; with 95 % intervals as `_low` and `_high`: mean, iqm (bootstrap), divergence_rate (Wilson).
    """
    rows = []
    for metric in metrics.shown:
        for recipe in recipe_names(trials, planned):
            own = trials[trials["recipe"] == recipe]
            for how in (LEFT_OUT,) if metric.baseline is None else (AT_CHANCE, LEFT_OUT):
                rows.append(_row(own, metric, recipe, planned.get(recipe, len(own)), how))
    return pd.DataFrame(rows)


def _row(own: pd.DataFrame, metric: Column, recipe: str, planned: int, how: str) -> dict[str, object]:
    """Sum up one metric of one recipe's trials."""
    head = {"metric": metric.label, "recipe": recipe, "diverged_trials": how}
    final = own[metric.column].astype(float) if len(own) else pd.Series(dtype=float)
    counted = metric.baseline if how == AT_CHANCE else None
    summary = asdict(summarize(final.to_numpy(), list(own["status"]), metric.better, counted))
    counts = {"n": summary.pop("n"), "planned": planned}
    counts |= {key: summary.pop(key) for key in ("ok", "diverged", "failed")}
    counts["stalled"] = int(own["stalled"].sum()) if len(own) else 0
    if len(own):
        final = at_baseline(own, metric) if how == AT_CHANCE else final[own["status"] == "ok"]
    return {**head, **counts, **summary, **_intervals(final.to_numpy(), own["status"], metric)}


def _intervals(values: ArrayLike, status: pd.Series[str], metric: Column) -> dict[str, float]:
    """Return the 95 % intervals of a row; each recipe is resampled from the same seed."""
    rate = wilson_interval(int((status == "diverged").sum()), int((status != "failed").sum()))
    return {
        **spread_interval("mean", mean_interval(values).clipped(0, metric.top)),
        **spread_interval("iqm", iqm_interval(values, np.random.default_rng(0))),
        **spread_interval("divergence_rate", rate),
    }


def readable(table: pd.DataFrame, metrics: Metrics) -> dict[str, pd.DataFrame]:
    """Return a final table as tables of text by title: the numbers of trials, then one table a metric.

    A recipe without diverged trials has one row a metric: the two ways to treat them agree.
    """
    first = table.drop_duplicates("recipe")
    counts = first[["recipe", "planned", "ok", "stalled", "diverged", "failed"]].astype(str)
    counts = counts.rename(columns={"stalled": "did not train"})
    counts["diverged share, 95 %"] = [within(row, "divergence_rate", 2) for row in first.to_dict("records")]
    texts = {"Trials (did not train: a part of ok)": counts}
    for metric in metrics.shown:
        own = table[table["metric"] == metric.label]
        own = own[(own["diverged"] > 0) | (own["diverged_trials"] == own["diverged_trials"].iloc[0])]
        how = own["diverged_trials"].where(own["diverged"] > 0, NOTHING)
        columns = {"recipe": own["recipe"], "diverged": how, "n": own["n"].astype(str)}
        pairs = zip(own["mean"], own["standard_error"], strict=True)
        columns["mean ± SE"] = pd.Series([f"{number(m)} ± {number(e)}" for m, e in pairs], own.index)
        columns["SD"], columns["median"] = (own[k].map(number) for k in ("standard_deviation", "median"))
        columns["IQM, 95 %"] = pd.Series([within(row, "iqm") for row in own.to_dict("records")], own.index)
        columns["best"] = own["best"].map(number)
        texts[f"Final {metric.label} ({metric.better} is better)"] = pd.DataFrame(columns)
    return texts

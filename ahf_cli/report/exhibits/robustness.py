"""The recipe that is ahead by each summary of the trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ahf_cli.report.exhibits.exhibit import Exhibit
from ahf_cli.report.outcomes import at_baseline
from ahf_cli.report.statistics.sample import interquartile_mean
from ahf_cli.report.text import Table, number
from ahf_cli.tasks.metrics import Column, Metrics

Ways = Mapping[str, Mapping[str, float]]


def robustness_table(trials: pd.DataFrame, curves: pd.DataFrame, names: list[str], metrics: Metrics) -> Table:
    """The recipe ahead by each summary: columns metric, way (the summary), winner, and one a recipe."""
    done = trials[trials["status"] != "failed"]
    drawn = [name for name in names if (done["recipe"] == name).any()]
    rows = []
    for metric in metrics.shown:
        for way, values in _ways(done, curves, drawn, metric).items():
            known = {name: v for name, v in values.items() if np.isfinite(v)}
            pick: Callable[..., str] = min if metric.better == "lower" else max
            winner = pick(known, key=known.__getitem__) if known else ""
            rows.append({"metric": metric.label, "way": way, "winner": winner, **values})
    numbers = pd.DataFrame(rows)
    text = numbers.assign(**{name: numbers[name].map(number) for name in drawn}) if rows else numbers
    return Table("robustness", numbers, {"Recipe ahead, by summary of the trials": text})


def _ways(done: pd.DataFrame, curves: pd.DataFrame, names: list[str], metric: Column) -> Ways:
    """Return each summary of the trials as values by recipe."""
    final = {name: done[done["recipe"] == name] for name in names}
    capped = {name: at_baseline(own, metric).dropna().to_numpy(float) for name, own in final.items()}
    best = np.min if metric.better == "lower" else np.max
    ways: dict[str, dict[str, float]] = {
        "mean": {k: _mean(v) for k, v in capped.items()},
        "median": {k: _of(np.median, v) for k, v in capped.items()},
        "interquartile mean": {k: _of(interquartile_mean, v) for k, v in capped.items()},
        "best trial": {k: _of(best, v) for k, v in capped.items()},
        "mean of the best step": _best_step(curves, names, metric),
    }
    if metric.baseline is not None and metric.better == "lower":
        cap = metric.baseline
        doubled = {
            k: np.where(own["status"] == "ok", own[metric.column].clip(upper=2 * cap), 2 * cap)
            for k, own in final.items()
        }
        ways["mean, capped at twice chance"] = {k: _mean(v.astype(float)) for k, v in doubled.items()}
    return ways


def _best_step(curves: pd.DataFrame, names: list[str], metric: Column) -> dict[str, float]:
    """Return the mean over a recipe's trials of their best evaluations, by recipe."""
    grouped = curves[curves["status"] != "failed"].groupby(["recipe", "trial"])[metric.column]
    best = (grouped.min() if metric.better == "lower" else grouped.max()).groupby("recipe").mean()
    return {name: float(best.get(name, np.nan)) for name in names}


def _of(summary: Callable[..., Any], values: ArrayLike) -> float:
    """Return a summary of values; NaN without a value."""
    x = np.asarray(values, dtype=float)
    return float(summary(x)) if len(x) else float("nan")


def _mean(values: ArrayLike) -> float:
    return _of(np.mean, values)


EXHIBIT = Exhibit(7, [lambda d, _: robustness_table(d.trials, d.curves, d.recipes, d.metrics)])

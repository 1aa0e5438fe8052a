"""Values of recipes at equal cost, in steps, work or seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ahf_cli.report import marks
from ahf_cli.report.canvas import Drawing, Theme
from ahf_cli.report.exhibits.curves import line_frame
from ahf_cli.report.exhibits.exhibit import Exhibit
from ahf_cli.report.marks import styles
from ahf_cli.report.plotting import Figure
from ahf_cli.report.statistics.interval import mean_interval
from ahf_cli.report.statistics.trajectory import Array, Band, value_at_cost
from ahf_cli.report.study_data import capped
from ahf_cli.report.text import Table, number, spread_interval, within
from ahf_cli.tasks.metrics import Column, Metrics

COSTS = {
    "step": "steps",
    "work": "gradients and curvature products",
    "seconds": "training time (s, evaluation excluded)",
}
"""Columns of a curve that are costs, and their labels.

For LeNet a curvature product takes at most the time of a gradient (docs/performance.md).  So the sum of both
compares recipes with and without linear systems, independent of the machine, and favours the latter.
"""

PLURAL = {"step": "steps"}


def equal_cost_table(curves: pd.DataFrame, names: list[str], metrics: Metrics) -> Table:
    """Headline and training loss of each recipe at equal cost, for each kind of cost.

    The cost is the least over the recipes of the median total, so half the trials of each recipe reach it.
    A trial that ended before has its last value, a diverged trial the baseline.  A recipe has no value if it
    was only evaluated before its first step.
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
    """Return the mean of each metric over the trials of one recipe at a cost."""
    found: dict[str, float] = {}
    for metric in metrics.shown:
        values = values_at(own, metric, cost, spent)
        found |= {"n": len(values)} | spread_interval(
            metric.column, mean_interval(values).clipped(0, metric.top)
        )
    return found


def _evaluated(own: pd.DataFrame, cost: str, spent: float) -> bool:
    """Return whether at a cost half the trials of a recipe had been evaluated after a step."""
    first = own[own["step"] > 0].groupby("trial")[cost].min()
    ended = own.groupby("trial")[cost].max()  # includes trials that diverged before an evaluation
    known = (first.astype(float).reindex(ended.index, fill_value=np.inf) <= spent) | (ended < spent)
    return bool(known.mean() >= 0.5)


def _said(row: Mapping[Any, Any], metric: Column) -> str:
    return "not evaluated yet" if np.isnan(row[metric.column]) else within(row, metric.column)


def values_at(own: pd.DataFrame, metric: Column, cost: str, spent: float) -> Array:
    """Return the last evaluated value of each trial of one recipe at a cost, (trials,).

    A trial that ended before has its last value, a diverged trial the baseline.
    """
    return values_along(own, metric, cost, np.array([spent]))[:, 0]


def values_along(own: pd.DataFrame, metric: Column, cost: str, spent: Array) -> Array:
    """Return the last evaluated values of one recipe's trials at many costs, (trials, costs)."""
    ends = own.sort_values("step").groupby("trial").last()
    diverged = (ends["status"] == "diverged").to_numpy()
    last = np.where(
        diverged,
        np.nan if metric.baseline is None else metric.baseline,
        capped(ends[metric.column].astype(float), metric).to_numpy(float),
    )
    own = own.assign(**{metric.column: capped(own[metric.column].astype(float), metric)})
    values, costs = by_trial(own, metric.column), by_trial(own, cost)
    known = np.stack([value_at_cost(values, costs, amount) for amount in spent], axis=1)
    return np.where(np.isnan(known), last[:, None], known)


def by_trial(own: pd.DataFrame, column: str) -> Array:
    """Return a column as (trials, evaluations), NaN after a trial's end."""
    once = own.drop_duplicates(["trial", "step"])
    wide = pd.Series(
        once[column].to_numpy(), [once["trial"], once["step"]]
    ).unstack()  # the column may be the step itself
    return wide.sort_index(axis=1).to_numpy(float)


POINTS = 101

SPENT = ("work", "seconds")


def spent_table(curves: pd.DataFrame, names: list[str], kind: Band, metric: Column) -> pd.DataFrame:
    """Centre and band of the headline at costs up to the median total of a recipe's trials.

    Columns: cost, recipe, spent (the amount), n, centre, low, high.
    """
    done = curves[curves["status"] != "failed"]
    frames = []
    for cost in SPENT:
        for name in names:
            own = done[done["recipe"] == name]
            if not len(own):
                continue
            total = float(own.groupby("trial")[cost].max().median())
            amounts = np.linspace(0, total, POINTS)
            values = values_along(own, metric, cost, amounts)
            frames.append(line_frame({"cost": cost, "recipe": name, "spent": amounts}, values, kind))
    columns = ["cost", "recipe", "spent", "n", "centre", "low", "high"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def equal_cost(curves: pd.DataFrame, names: list[str], kind: Band, metric: Column) -> Drawing | str:
    """Return a drawing of centre and band of the headline against work and against seconds."""
    table = spent_table(curves, names, kind, metric)
    if not len(table):
        return "no trial was evaluated"
    looks = styles(names)
    caption = [
        f"{metric.label.capitalize()} against the cost of a trial: gradients and curvature products, or "
        "seconds of training on the machine of the study. For LeNet a product takes at most the time of a "
        "gradient. "
        "Between two evaluations the earlier value holds; a line ends where half the trials had ended. "
        f"{marks.band_words(kind, False)}."
    ]

    def draw(figure: Figure, theme: Theme) -> None:
        for at, (axes, cost) in enumerate(zip(marks.grid(figure, theme, 2), SPENT, strict=True)):
            lines = table[table["cost"] == cost].rename(
                columns={"spent": "step"}
            )  # `marks.line` needs these names
            for name in lines["recipe"].unique():
                marks.line(axes, lines[lines["recipe"] == name], looks[name], name if at == 0 else None)
            marks.baseline(axes, metric)
            axes.set(xlabel=COSTS[cost], ylabel=marks.labelled(metric, theme))
            axes.set_ylim(*marks.limits(metric, float(lines["high"].max())))
            axes.set_xlim(0, max(float(lines["step"].max()), 1e-9))
        marks.legend(figure, theme)

    return Drawing("equal_cost", f"{metric.label.capitalize()} at equal cost", table, caption, draw, panels=2)


EXHIBIT = Exhibit(
    3,
    [lambda d, _: equal_cost_table(d.curves, d.recipes, d.metrics)],
    {"equal_cost": lambda d, choices: equal_cost(d.curves, d.recipes, choices.band, d.metrics.headline)},
)

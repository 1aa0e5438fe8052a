"""Trials that have met the target, by steps, work and seconds."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ahf_cli.report import marks
from ahf_cli.report.canvas import Drawing, Theme
from ahf_cli.report.exhibits.equal_cost import COSTS, by_trial, labels
from ahf_cli.report.exhibits.exhibit import Exhibit
from ahf_cli.report.plotting import Figure
from ahf_cli.report.statistics.interval import median_interval, wilson_interval
from ahf_cli.report.statistics.sample import empirical_distribution
from ahf_cli.report.statistics.trajectory import first_crossing
from ahf_cli.report.study_data import StudyData
from ahf_cli.report.style import styles
from ahf_cli.report.text import Table, spread_interval, within
from ahf_cli.report.work import COUNTED, CostWords
from ahf_cli.tasks.metrics import Column


def crossing_table(curves: pd.DataFrame, names: list[str], target: float, metric: Column) -> pd.DataFrame:
    """Cost at which each trial first met the target of the headline: recipe, trial, and one column a cost.

    The cost of a trial that never met it is ∞.  A crossing counts at its evaluation, also if the trial
    diverged later.
    """
    frames = []
    for name in names:
        own = curves[(curves["recipe"] == name) & (curves["status"] != "failed")]
        if not len(own):
            continue
        sign = 1 if metric.better == "higher" else -1
        values = sign * by_trial(own, metric.column)
        met = {cost: first_crossing(values, by_trial(own, cost), sign * target) for cost in COSTS}
        frames.append(pd.DataFrame({"recipe": name, "trial": np.sort(own["trial"].unique()), **met}))
    return (
        pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["recipe", "trial", *COSTS])
    )


def target_table(
    curves: pd.DataFrame, names: list[str], target: float, metric: Column, words: CostWords = COUNTED
) -> Table:
    """Return the table of trials that met the target, with the median cost over all trials (or ∞)."""
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
    return Table("time_to_target", numbers, {title: pd.DataFrame(text)}, words.sentences)


def time_to_target(
    curves: pd.DataFrame, names: list[str], target: float | None, metric: Column, words: CostWords = COUNTED
) -> Drawing | str:
    """Return a drawing of the share of trials that have met the target, against each cost."""
    if target is None:
        return f"no target of {metric.label} is given: --target X"
    crossings = crossing_table(curves, names, target, metric)
    if not np.isfinite(crossings["step"].to_numpy(float)).any():
        return f"no trial met {metric.label} {target:g}"
    frames = []
    for cost in COSTS:
        for name in crossings["recipe"].unique():
            own = crossings[crossings["recipe"] == name][cost]
            found = empirical_distribution(own.to_numpy(float))
            frames.append(pd.DataFrame({"cost": cost, "recipe": name, "n": len(own), **found._asdict()}))
    table = pd.concat([frame for frame in frames if len(frame)], ignore_index=True)
    looks = styles(names)
    sign = f"{metric.label.partition(' ')[2]} {'≥' if metric.better == 'higher' else '≤'}"
    met = crossings[np.isfinite(crossings["step"].to_numpy(float))]["recipe"].value_counts()
    never = [name for name in crossings["recipe"].unique() if name not in met]
    unmet = f" Recipes without a trial that met it are not drawn: {', '.join(never)}." if never else ""
    caption = [
        f"Share of all trials whose {metric.label} has reached {target:g}, against their cost, with a "
        f"simultaneous 95 % band (Dvoretzky-Kiefer-Wolfowitz; drawn from n = {marks.FEW} on). Trials that "
        "met it: "
        f"{', '.join(f'{k} {met[k]} of {(crossings.recipe == k).sum()}' for k in met.index)}.{unmet} "
        f"{words.sentences}"
    ]
    ends = {cost: float(curves[curves["status"] != "failed"][cost].max()) for cost in COSTS}

    def draw(figure: Figure, theme: Theme) -> None:
        for at, (axes, (cost, label)) in enumerate(
            zip(marks.grid(figure, theme, 3, 3), labels(words).items(), strict=True)
        ):
            lines = table[table["cost"] == cost]
            drawn = lines["recipe"].unique()
            for name in drawn:
                own = lines[lines["recipe"] == name]
                named, few = name if at == 0 else None, len(drawn) <= marks.FILLED
                marks.stairs(axes, own, looks[name], named, 0, ends[cost], filled=few)
            axes.set(xlabel=label, ylabel=f"share at {sign} {target:g}" if at == 0 or theme.stacked else "")
            axes.set_ylim(0, 1)
            axes.set_xlim(0, max(ends[cost], 1e-9))
        marks.legend(figure, theme)

    return Drawing(
        "time_to_target",
        f"Time to {metric.label} {target:g}",
        table,
        caption,
        draw,
        panels=3,
        height=0.9,
        across=3,
    )


def _table(data: StudyData, target: float | None) -> Table | None:
    if target is None:
        return None
    return target_table(data.curves, data.recipes, target, data.metrics.headline, data.cost_words)


EXHIBIT = Exhibit(
    6,
    [lambda d, choices: _table(d, choices.target)],
    {
        "time_to_target": lambda d, choices: time_to_target(
            d.curves, d.recipes, choices.target, d.metrics.headline, d.cost_words
        )
    },
)

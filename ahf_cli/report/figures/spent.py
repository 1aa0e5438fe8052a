"""F10: test accuracy against what was spent: work and seconds, in place of steps."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ahf_cli.report.canvas import Drawing, Theme
from ahf_cli.report.figures import marks
from ahf_cli.report.plotting import Figure
from ahf_cli.report.statistics import Band
from ahf_cli.report.style import styles
from ahf_cli.report.tables.curves import line_frame
from ahf_cli.report.tables.target import COSTS, values_along
from ahf_cli.tasks.metrics import Column

POINTS = 101
SPENT = ("work", "seconds")


def spent_table(curves: pd.DataFrame, names: list[str], kind: Band, metric: Column) -> pd.DataFrame:
    """Centre and band of the headline at costs up to what half the trials of a recipe have spent.

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
    """Draw mean and band of the headline against work and against seconds."""
    table = spent_table(curves, names, kind, metric)
    if not len(table):
        return "no trial was evaluated"
    looks = styles(names)
    caption = [
        f"{metric.label.capitalize()} against what a trial had spent: gradients and curvature products, "
        "which cost about the same, and seconds of training on the machine of the study. Between two "
        "evaluations the earlier one holds; a line ends where half the trials had ended. "
        f"{marks.band_words(kind, False)}."
    ]

    def draw(figure: Figure, theme: Theme) -> None:
        for at, (axes, cost) in enumerate(zip(marks.grid(figure, theme, 2), SPENT, strict=True)):
            lines = table[table["cost"] == cost].rename(
                columns={"spent": "step"}
            )  # what a line's x is called
            for name in lines["recipe"].unique():
                marks.line(axes, lines[lines["recipe"] == name], looks[name], name if at == 0 else None)
            marks.baseline(axes, metric)
            axes.set(xlabel=COSTS[cost], ylabel=marks.labelled(metric, theme))
            axes.set_ylim(*marks.limits(metric, float(lines["high"].max())))
            axes.set_xlim(0, max(float(lines["step"].max()), 1e-9))
        marks.legend(figure, theme)

    return Drawing("equal_cost", f"{metric.label.capitalize()} at equal cost", table, caption, draw, panels=2)

"""What each single choice does, as a figure of effects with intervals."""

from __future__ import annotations

import pandas as pd

from ahf_cli.report.canvas import Drawing, Theme
from ahf_cli.report.figures import marks
from ahf_cli.report.plotting import Figure, MaxNLocator
from ahf_cli.tasks.metrics import Metrics


def attribution(table: pd.DataFrame, metrics: Metrics) -> Drawing | str:
    """Draw the effects of a table of single changes, one row a change."""
    if not len(table):
        return "no two recipes differ in one choice"
    drawn = table.iloc[::-1].reset_index(drop=True)
    fewest, most = int(table["pairs"].min()), int(table["pairs"].max())
    n = f"{most}" if fewest == most else f"{fewest} to {most}"
    counted = (
        "Diverged trials, and losses above it, count at chance"
        if metrics.guessing
        else "Pairs with a diverged trial are left out"
    )
    caption = [
        "Effect of changing one choice: mean difference after − before with its 95 % interval (Student's t), "
        f"over pairs of trials with the same hyperparameters and training seed (n = {n} pairs a row). "
        f"{counted}."
    ]

    def draw(figure: Figure, theme: Theme) -> None:
        panels = marks.grid(figure, theme, 2)
        for axes, metric in zip(panels, (metrics.headline, metrics.loss), strict=True):
            axes.xaxis.set_major_locator(MaxNLocator(5))
            column = metric.column
            for row, found in enumerate(drawn.to_dict("records")):
                centre, low, high = (found[f"{column}{end}"] for end in ("", "_low", "_high"))
                helps = (low > 0) if metric.better == "higher" else (high < 0)
                harms = (high < 0) if metric.better == "higher" else (low > 0)
                color = "#009E73" if helps else "#D55E00" if harms else "0.35"
                marker = "^" if helps else "v" if harms else "o"
                axes.plot([low, high], [row, row], color=color, linewidth=2)
                axes.plot(centre, row, marker, color=color, markersize=6)
            axes.axvline(0, color="0.45", linewidth=0.8)
            named = axes is panels[0] or not theme.caption
            labels = [f"{r['before']}\n{r['key']}: {r['new']}" for r in drawn.to_dict("records")]
            axes.set_yticks(range(len(drawn)), labels if named else [""] * len(drawn), fontsize="small")
            axes.set_ylim(-0.6, len(drawn) - 0.4)
            axes.grid(False, axis="y")
            better = "right" if metric.better == "higher" else "left"
            axes.set_xlabel(f"change of {metric.label} ({better} is better)")

    size = max(0.5, 0.1 * len(drawn) + 0.3)
    return Drawing("attribution", "What each single choice does", table, caption, draw, panels=2, height=size)

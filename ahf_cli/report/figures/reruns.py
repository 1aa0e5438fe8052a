"""F7: the best configuration of each recipe on new seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ahf_cli.report.canvas import Drawing, Theme
from ahf_cli.report.figures import marks
from ahf_cli.report.plotting import Figure, MaxNLocator
from ahf_cli.report.statistics import mean_interval
from ahf_cli.report.style import styles
from ahf_cli.report.tables import at_baseline
from ahf_cli.report.tables.reruns import best_trials
from ahf_cli.tasks.metrics import Metrics


def reruns(
    trials: pd.DataFrame, again: pd.DataFrame, names: list[str], objective: str, metrics: Metrics
) -> Drawing | str:
    """Draw each re-run, their mean with its interval, and what the search had seen."""
    done = again[again["status"] != "failed"] if len(again) else again
    drawn = [name for name in names if (done["recipe"] == name).any()]
    if not drawn:
        return "there are no re-runs of the best configurations"
    table = done[["recipe", "trial", "seed", "status"]].assign(
        **{m.column: at_baseline(done, m) for m in metrics.shown}
    )
    best = best_trials(trials, objective)[[m.column for m in metrics.shown]].astype(float)
    seen: dict[Any, dict[Any, float]] = best.to_dict()
    looks = styles(names)
    caption = [
        "The best configuration of each recipe, trained again with new seeds: one point a seed "
        f"(n: {marks.counts(done, drawn)}); bar: mean with its 95 % interval (Student's t); ◇: what the "
        "search had seen of it, optimistic where it lies on the better side of the bar. ×: diverged, "
        f"{'drawn at chance' if metrics.guessing else 'without a value'}."
        + marks.cut_words(table, metrics.loss, drawn)
    ]

    def draw(figure: Figure, theme: Theme) -> None:
        for at, (axes, metric) in enumerate(zip(marks.grid(figure, theme, 2), metrics.shown, strict=True)):
            for row, name in enumerate(reversed(drawn)):
                own = table[table["recipe"] == name]
                look = looks[name]
                for status, marker in (("ok", look.marker), ("diverged", "x")):
                    some = own[own["status"] == status]
                    height = row + 0.1 + marks.spread(some["trial"], 0.14)
                    axes.scatter(
                        some[metric.column], height, s=18, color=look.color, marker=marker, alpha=0.8
                    )
                mean = mean_interval(own[metric.column].dropna())
                axes.plot([mean.low, mean.high], [row - 0.22] * 2, color=look.color, linewidth=3, alpha=0.55)
                axes.plot(mean.estimate, row - 0.22, "|", color="black", markersize=9, markeredgewidth=1.6)
                searched = seen[metric.column].get(name, float("nan"))
                axes.plot(searched, row - 0.22, "D", markersize=5, markerfacecolor="none", color=look.color)
            named = at == 0 or not theme.caption
            axes.set_yticks(range(len(drawn)), [*reversed(drawn)] if named else [""] * len(drawn))
            axes.set_ylim(-0.6, len(drawn) - 0.4)
            axes.grid(False, axis="y")
            axes.set_xlabel(f"final {marks.labelled(metric, theme)}")
            axes.xaxis.set_major_locator(MaxNLocator(5))
            if np.isinf(metric.top) and table[metric.column].max() > metric.edge:
                axes.set_xlim(0, metric.edge)

    size = max(0.6, 0.13 * len(drawn) + 0.35)
    return Drawing("reruns", "Re-runs of the best configuration", table, caption, draw, panels=2, height=size)

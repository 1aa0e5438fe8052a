"""F6: the final objective against each hyperparameter."""

from __future__ import annotations

import pandas as pd

from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS
from ahf_cli.report.canvas import Drawing, Theme
from ahf_cli.report.figures import marks
from ahf_cli.report.plotting import Figure
from ahf_cli.report.style import styles
from ahf_cli.report.tables.sensitivity import sensitivity_points
from ahf_cli.tasks.metrics import Column, Metrics


def sensitivity(trials: pd.DataFrame, names: list[str], objective: Column, metrics: Metrics) -> Drawing | str:
    """Draw one panel a hyperparameter, one point a trial."""
    table = sensitivity_points(trials, names)
    keys = list(table["hyperparameter"].unique())
    if not keys:
        return "no hyperparameter varies between the trials"
    looks = styles(names)
    label = objective.label
    caption = [
        f"{label.capitalize()} of each trial, at most {marks.cap_words(metrics)}, against its "
        f"hyperparameters; ×: diverged. n: {marks.counts(trials, names)}. The sampler chose where to look: a "
        "gap is no gap of the method."
    ]

    def draw(figure: Figure, theme: Theme) -> None:
        seen: set[str] = set()
        columns = theme.columns(len(keys), 3)
        for at, (axes, key) in enumerate(zip(marks.grid(figure, theme, len(keys), 3), keys, strict=True)):
            panel = table[table["hyperparameter"] == key]
            for name in panel["recipe"].unique():
                own = panel[panel["recipe"] == name]
                look = looks[name]
                for status, marker, size in (("ok", look.marker, 16), ("diverged", "x", 22)):
                    some = own[own["status"] == status]
                    first = name not in seen and len(some) > 0 and status == "ok"
                    axes.scatter(
                        some["setting"], some["value"], s=size, marker=marker, color=look.color, alpha=0.75,
                        linewidths=1.1 if status == "diverged" else 0, label=name if first else None,
                    )  # fmt: skip
                    seen |= {name} if first else set()
            declared = HYPERPARAMETERS[key]
            log = declared.search is not None and declared.search.log
            axes.set(xlabel=f"{declared.help} {declared.symbol}", xscale="log" if log else "linear")
            axes.set_ylabel(objective.named if at % columns == 0 else "")
            axes.set_ylim(0, marks.value_top(objective))
            axes.minorticks_off()
        marks.legend(figure, theme, points=True)

    return Drawing("sensitivity", "Sensitivity", table, caption, draw, panels=len(keys), height=0.8, across=3)

"""Dependence of the objective on each hyperparameter."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS
from ahf_cli.report import marks
from ahf_cli.report.canvas import Drawing, Theme
from ahf_cli.report.exhibits.exhibit import Exhibit
from ahf_cli.report.plotting import Figure
from ahf_cli.report.study_data import ranked
from ahf_cli.report.style import styles
from ahf_cli.tasks.metrics import Column, Metrics


def sensitivity_points(trials: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """One row a trial and varying hyperparameter: recipe, trial, status, value, hyperparameter, setting."""
    done = ranked(trials)
    frames = []
    for key in HYPERPARAMETERS:
        column = f"params.{key}"
        for name in names if column in done else []:
            own = done[(done["recipe"] == name) & done[column].notna()]
            if own[column].nunique() > 1:
                points = own[["recipe", "trial", "status", "value"]]
                frames.append(points.assign(hyperparameter=key, setting=own[column].astype(float)))
    columns = ["recipe", "trial", "status", "value", "hyperparameter", "setting"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def on_log_axis(key: str, settings: pd.Series[float]) -> bool:
    """Return whether a hyperparameter has a logarithmic axis: as it is declared, else by its spread."""
    if (declared := HYPERPARAMETERS[key].search) is not None:
        return declared.log
    return bool(settings.min() > 0 and settings.max() > SPREAD * settings.min())


SPREAD = 30
"""Ratio of the largest to the smallest setting, above which an axis is logarithmic."""


def sensitivity(trials: pd.DataFrame, names: list[str], objective: Column, metrics: Metrics) -> Drawing | str:
    """Return a drawing of the objective, one panel a hyperparameter, one point a trial."""
    table = sensitivity_points(trials, names)
    keys = list(table["hyperparameter"].unique())
    if not keys:
        return "no hyperparameter varies between the trials"
    looks = styles(names)
    label = objective.label
    caption = [
        f"{label.capitalize()} of each trial, at most {marks.cap_words(metrics)}, against its "
        f"hyperparameters; ×: diverged. n: {marks.counts(trials, names)}. A gap means that the sampler "
        "chose no trial there."
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
                    fill: Any = {"edgecolors": look.color, "facecolors": look.face} if status == "ok" else {}
                    axes.scatter(
                        some["setting"], some["value"], s=size, marker=marker, alpha=0.75,
                        linewidths=0.7 if fill else 1.1, label=name if first else None,
                        **(fill or {"color": look.color}),
                    )  # fmt: skip
                    seen |= {name} if first else set()
            declared = HYPERPARAMETERS[key]
            log = on_log_axis(key, panel["setting"])
            axes.set(xlabel=f"{declared.help} {declared.symbol}", xscale="log" if log else "linear")
            axes.set_ylabel(objective.named if at % columns == 0 else "")
            if objective.log:
                axes.set(yscale="log")
            else:
                axes.set_ylim(*marks.zoomed(table["value"], objective))
            axes.minorticks_off()
        marks.legend(figure, theme, points=True)

    return Drawing("sensitivity", "Sensitivity", table, caption, draw, panels=len(keys), height=0.8, across=3)


EXHIBIT = Exhibit(
    8,
    figures={"sensitivity": lambda d, _: sensitivity(d.trials, d.recipes, d.minimized, d.metrics)},
)

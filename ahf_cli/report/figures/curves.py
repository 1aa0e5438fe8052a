"""F1, the paper's Figure 2: training loss and test accuracy against step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from ahf_cli.report.canvas import Drawing, Theme
from ahf_cli.report.figures import marks
from ahf_cli.report.plotting import Axes, Figure
from ahf_cli.report.statistics import Band
from ahf_cli.report.style import observed, styles
from ahf_cli.report.tables import curve_table, recipe_names
from ahf_cli.tasks.metrics import Column, Metrics

EXPLAINED = 6
"""Most recipes that the caption explains; of more it says what was seen."""


def curves(
    trials: pd.DataFrame,
    evaluations: pd.DataFrame,
    planned: Mapping[str, int],
    band: Band,
    metrics: Metrics,
    explanations: Mapping[str, str],
) -> Drawing:
    """Draw mean and band of each metric over the trials of each recipe."""
    table = pd.concat([curve_table(evaluations, m, band) for m in metrics.shown], ignore_index=True)
    table = with_medians(table, evaluations, metrics.loss)
    names = recipe_names(trials, planned)
    looks = styles(names)
    own = {name: trials[trials["recipe"] == name] for name in names}
    n = {name: marks.n_of(own[name], planned.get(name, len(own[name]))) for name in names}
    caption = [_band_sentence(table, trials, band, metrics), *_cut_off(table, metrics.loss.edge)]
    for name in names:
        said = explanations.get(name, "") if len(names) <= EXPLAINED else ""
        caption.append(f"{name} ({n[name]}): {f'{said} ' if said else ''}{observed(own[name])}")

    title = f"{metrics.loss.label.capitalize()} and {metrics.headline.label} against step"

    def draw(figure: Figure, theme: Theme) -> None:
        for at, (axes, metric) in enumerate(zip(marks.grid(figure, theme, 2), metrics.shown, strict=True)):
            lines = table[table["metric"] == metric.column]
            for name in lines["recipe"].unique():
                label = f"{name}, {n[name]}" if at == 0 else None
                own_line = lines[lines["recipe"] == name]
                if has_median(own_line):
                    axes.plot(own_line["step"], own_line["median"], color=looks[name].color, linewidth=0.8)
                    own_line = own_line.assign(low=np.nan, high=np.nan)
                marks.line(axes, own_line, looks[name], label)
            marks.baseline(axes, metric)
            axes.set(xlabel=marks.STEP_LABEL, ylabel=marks.labelled(metric, theme))
            _limits(axes, lines, metric)
        marks.legend(figure, theme)

    return Drawing("figure2", title, table, caption, draw, panels=2)


def with_medians(table: pd.DataFrame, evaluations: pd.DataFrame, metric: Column) -> pd.DataFrame:
    """Add the median to the losses of the recipes whose centre leaves the panel: one trial can do that."""
    beyond = (table["metric"] == "train_loss") & (table["centre"] > metric.edge)
    gone = list(table.loc[beyond, "recipe"].unique())
    if not gone:
        return table
    found = curve_table(evaluations[evaluations["recipe"].isin(gone)], metric, "iqr")
    medians = found.rename(columns={"centre": "median"})[["metric", "recipe", "step", "median"]]
    return table.merge(medians, on=["metric", "recipe", "step"], how="left")


def has_median(line: pd.DataFrame) -> bool:
    """Whether the curve of one recipe and metric has a median to draw, in place of its band."""
    return "median" in line and bool(line["median"].notna().any())


def _limits(axes: Axes, table: pd.DataFrame, metric: Column) -> None:
    """Fix the y axis: fractions from 0 to 1, losses from 0 to the panel's edge, above which they are cut."""
    if metric.top == 1:
        axes.set_ylim(0, 1)
        axes.set_yticks(np.arange(0, 1.01, 0.2))
        return
    scale = metric.scale if np.isfinite(metric.scale) else 0.0
    top = float(table["centre"].max()) if table["centre"].notna().any() else scale
    axes.set_ylim(0, min(max(top, scale) * 1.12, metric.edge) or 1.0)


def _cut_off(table: pd.DataFrame, top: float) -> list[str]:
    """Say which curves leave the panel of the loss, and how far they go."""
    losses = table[table["metric"] == "train_loss"]
    above = losses[losses["centre"] > top]
    if not len(above):
        return []
    peaks = above.loc[above.groupby("recipe")["centre"].idxmax()]
    said = [f"{row.recipe} reaches {row.centre:.3g} at step {row.step}" for row in peaks.itertuples()]
    instead = "Such a recipe has its median as a thin line, and no band."
    return [f"The loss is cut off above {top:.3g}: {'; '.join(said)}. {instead}"]


def _band_sentence(table: pd.DataFrame, trials: pd.DataFrame, band: Band, metrics: Metrics) -> str:
    most = int(table["n"].max()) if len(table) else 0
    text = f"{marks.band_words(band, most == 1)}."
    if most > 1 and (table["n"] == 1).any():
        text += " A line without a band is a single trial."
    return text + marks.diverged_words(trials, metrics) + marks.stalled_words(trials)

"""Training loss and headline against step: the paper's Figure 2."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ahf_cli.recipes.document import sentences
from ahf_cli.report import marks
from ahf_cli.report.canvas import Drawing, Theme, save
from ahf_cli.report.exhibits.exhibit import Exhibit
from ahf_cli.report.marks import observed, styles
from ahf_cli.report.outcomes import capped
from ahf_cli.report.plotting import Axes, Figure
from ahf_cli.report.statistics.trajectory import Array, Band, band, carry_forward, count
from ahf_cli.report.study_data import recipe_names
from ahf_cli.tasks.metrics import Column, Metrics


def line_frame(head: Mapping[str, Any], values: Array, kind: Band) -> pd.DataFrame:
    """Number of values, centre and band of each column of (trials, points), after the columns of `head`."""
    centre, low, high = band(values, kind)
    return pd.DataFrame({**head, "n": count(values), "centre": centre, "low": low, "high": high})


def curve_table(curves: pd.DataFrame, metric: Column, kind: Band) -> pd.DataFrame:
    """Centre and band of one metric at each evaluation of each recipe, the data of a line with its band.

    `curves` has the columns of `curves_frame`.  Diverged trials are carried forward at the baseline, or end
    without a baseline; failed trials are left out.
    Columns: metric, recipe, step, n, centre, low, high.
    """
    frames = []
    curves = curves[curves["status"] != "failed"]
    for recipe, own in curves.groupby("recipe", sort=False):
        # If every trial diverged, the recipe's own evaluations end too early.
        whole = own if (own["status"] == "ok").any() else curves
        steps = np.sort(whole["step"].unique())
        values = own.pivot_table(index="trial", columns="step", values=metric.column, dropna=False)
        values = values.reindex(columns=steps)
        diverged = own.groupby("trial")["status"].first().reindex(values.index) == "diverged"
        counted = np.nan if metric.baseline is None else metric.baseline
        filled = carry_forward(capped(values, metric).to_numpy(), diverged.to_numpy(), counted)
        frames.append(line_frame({"metric": metric.column, "recipe": recipe, "step": steps}, filled, kind))
    columns = ["metric", "recipe", "step", "n", "centre", "low", "high"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def step_table(steps: pd.DataFrame, columns: list[str], kind: Band) -> pd.DataFrame:
    """Centre and band of some columns of `steps.csv.gz` at each step, over the trials that reached it.

    Columns: quantity, step, n, centre, low, high.
    """
    frames = []
    for column in columns:
        values = steps.pivot_table(index="trial", columns="step", values=column, dropna=False)
        x = values.replace([np.inf, -np.inf], np.nan).to_numpy()
        frames.append(line_frame({"quantity": column, "step": values.columns}, x, kind))
    return pd.concat(frames, ignore_index=True)


EXPLAINED = 6
"""Most recipes whose descriptions are in the caption; outcomes are always there."""


def curves(
    trials: pd.DataFrame,
    evaluations: pd.DataFrame,
    planned: Mapping[str, int],
    band: Band,
    metrics: Metrics,
    explanations: Mapping[str, str],
    references: Mapping[str, float] | None = None,
) -> Drawing:
    """Return a drawing of centre and band of each metric over the trials of each recipe."""
    table = pd.concat([curve_table(evaluations, m, band) for m in metrics.shown], ignore_index=True)
    table = with_medians(table, evaluations, metrics.loss)
    names = recipe_names(trials, planned)
    looks = styles(names)
    own = {name: trials[trials["recipe"] == name] for name in names}
    n = {name: marks.n_of(own[name], planned.get(name, len(own[name]))) for name in names}
    marked = references or {}
    sentence = _band_sentence(table, trials, band, metrics) + marks.reference_words(marked)
    caption = [sentence, *_cut_off(table, metrics.loss.edge)]
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
            own_marks = marked if metric == metrics.headline else {}
            marks.references(axes, own_marks)
            _limits(axes, lines, metric, own_marks)
        marks.legend(figure, theme)

    return Drawing("figure2", title, table, caption, draw, panels=2)


def with_medians(table: pd.DataFrame, evaluations: pd.DataFrame, metric: Column) -> pd.DataFrame:
    """Return the table with medians of the recipes whose mean loss leaves the panel, maybe by one trial."""
    beyond = (table["metric"] == "train_loss") & (table["centre"] > metric.edge)
    gone = list(table.loc[beyond, "recipe"].unique())
    if not gone:
        return table
    found = curve_table(evaluations[evaluations["recipe"].isin(gone)], metric, "iqr")
    medians = found.rename(columns={"centre": "median"})[["metric", "recipe", "step", "median"]]
    return table.merge(medians, on=["metric", "recipe", "step"], how="left")


def has_median(line: pd.DataFrame) -> bool:
    """Return whether the curve of one recipe and metric has a median to draw instead of its band."""
    return "median" in line and bool(line["median"].notna().any())


def _limits(axes: Axes, table: pd.DataFrame, metric: Column, marked: Mapping[str, float]) -> None:
    """Set the y axis: the bounds of a fraction, or 0 to the panel's edge, above which losses are cut."""
    if metric.log:
        axes.set(yscale="log", ylim=marks.log_limits([*table["centre"], *marked.values()], metric.edge))
        return
    if metric.top == 1:
        axes.set_ylim(0, 1)
        axes.set_yticks(np.arange(0, 1.01, 0.2))
        return
    scale = metric.scale if np.isfinite(metric.scale) else 0.0
    top = float(table["centre"].max()) if table["centre"].notna().any() else scale
    axes.set_ylim(0, min(max(top, scale) * 1.12, metric.edge) or 1.0)


def _cut_off(table: pd.DataFrame, top: float) -> list[str]:
    """Return sentences on the curves that leave the panel of the loss, with their peaks."""
    losses = table[table["metric"] == "train_loss"]
    above = losses[losses["centre"] > top]
    if not len(above):
        return []
    peaks = above.loc[above.groupby("recipe")["centre"].idxmax()]
    said = [f"{row.recipe} reaches {row.centre:.3g} at step {row.step}" for row in peaks.itertuples()]
    instead = "Such a recipe has its median as a thin line without a band."
    return [f"The loss is cut off above {top:.3g}: {'; '.join(said)}. {instead}"]


def _band_sentence(table: pd.DataFrame, trials: pd.DataFrame, band: Band, metrics: Metrics) -> str:
    most = int(table["n"].max()) if len(table) else 0
    text = f"{marks.band_words(band, most == 1)}."
    if most > 1 and (table["n"] == 1).any():
        text += " A line without a band is a single trial."
    return text + marks.diverged_words(trials, metrics) + marks.outcome_words(trials, metrics)


def figure_2(
    trials: pd.DataFrame,
    evaluations: pd.DataFrame,
    planned: Mapping[str, int],
    band: Band,
    metrics: Metrics,
    out: Path,
) -> list[Path]:
    """Save the paper's Figure 2, training loss and headline against step, and return the paths."""
    return save(curves(trials, evaluations, planned, band, metrics, sentences({})), out)


EXHIBIT = Exhibit(
    2,
    figures={
        "figure2": lambda d, choices: curves(
            d.trials, d.curves, d.planned, choices.band, d.metrics, d.explanations, choices.references
        )
    },
)

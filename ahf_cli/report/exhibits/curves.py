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
from ahf_cli.report.marks import observed
from ahf_cli.report.outcomes import capped
from ahf_cli.report.plotting import Axes, Figure
from ahf_cli.report.statistics.trajectory import Array, Band, band, carry_forward, count
from ahf_cli.report.study_data import recipe_names
from ahf_cli.report.style import styles
from ahf_cli.tasks.metrics import Column, Metrics


def line_frame(head: Mapping[str, Any], values: Array, kind: Band) -> pd.DataFrame:
    """Number of values, centre and band of each column of (trials, points), after the columns of `head`."""
    centre, low, high = band(values, kind)
    return pd.DataFrame({**head, "n": count(values), "centre": centre, "low": low, "high": high})


def curve_table(
    curves: pd.DataFrame, metric: Column, kind: Band, left_as: float | None = None
) -> pd.DataFrame:
    """Centre and band of one metric at each evaluation of each recipe, the data of a line with its band.

    `curves` has the columns of `curves_frame`.  Diverged trials are carried forward at the baseline, or end
    without a baseline; failed trials are left out.  With `left_as` they are carried forward at it, NaN to
    end them, and no value is capped.
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
        counted = (np.nan if metric.baseline is None else metric.baseline) if left_as is None else left_as
        shown = capped(values, metric) if left_as is None else values
        filled = carry_forward(shown.to_numpy(), diverged.to_numpy(), counted)
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
"""Most recipes that a caption describes; their outcomes are always there."""


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
    table = with_medians(table, evaluations, metrics, band)
    names = recipe_names(trials, planned)
    looks = styles(names)
    own = {name: trials[trials["recipe"] == name] for name in names}
    n = {name: marks.n_of(own[name], planned.get(name, len(own[name]))) for name in names}
    marked = references or {}
    sentence = _band_sentence(table, trials, band, metrics) + marks.reference_words(marked)
    caption = [sentence, *cut_off(table, metrics)]
    caption += [f"{name} ({n[name]}): {observed(own[name])}" for name in names]
    known = names if len(names) <= EXPLAINED else []
    described = [f"{name}: {explanations[name]}" for name in known if explanations.get(name)]

    title = f"{metrics.loss.label.capitalize()} and {metrics.headline.label} against step"

    def draw(figure: Figure, theme: Theme) -> None:
        for at, (axes, metric) in enumerate(zip(marks.grid(figure, theme, 2), metrics.shown, strict=True)):
            lines = table[table["metric"] == metric.column]
            for name in lines["recipe"].unique():
                label = f"{name}, {n[name]}{median_words(table, name)}" if at == 0 else None
                own_line = drawn_line(lines[lines["recipe"] == name])
                marks.line(axes, own_line, looks[name], label, filled=len(names) <= marks.FILLED)
            axes.set(xlabel=marks.STEP_LABEL, ylabel=marks.labelled(metric, theme))
            own_marks = marked if metric == metrics.headline else {}
            marks.references(axes, own_marks)
            limits(axes, lines, metric, own_marks)
            marks.baseline(axes, metric)
        marks.legend(figure, theme)

    return Drawing("figure2", title, table, caption, draw, panels=2, described=described)


def with_medians(
    table: pd.DataFrame, evaluations: pd.DataFrame, metrics: Metrics, kind: Band
) -> pd.DataFrame:
    """Return the table with medians of the recipes whose mean leaves a panel, maybe by one trial."""
    frames = []
    for metric in metrics.shown if kind != "iqr" else ():  # its centre is the median
        beyond = (table["metric"] == metric.column) & (table["centre"] > metric.edge)
        if beyond.any():
            gone = evaluations["recipe"].isin(table.loc[beyond, "recipe"])
            frames.append(curve_table(evaluations[gone], metric, "iqr"))
    if not frames:
        return table
    medians = pd.concat(frames).rename(columns={"centre": "median"})[["metric", "recipe", "step", "median"]]
    return table.merge(medians, on=["metric", "recipe", "step"], how="left")


def has_median(line: pd.DataFrame) -> bool:
    """Return whether a line has a median that is drawn instead of its mean and band."""
    return "median" in line and bool(line["median"].notna().any())


def drawn_line(line: pd.DataFrame) -> pd.DataFrame:
    """Return one recipe's line as drawn: its median without a band if the mean leaves the panel."""
    return line.assign(centre=line["median"], low=np.nan, high=np.nan) if has_median(line) else line


def median_words(table: pd.DataFrame, name: str) -> str:
    """Return the end of a recipe's label in the legend if some line of it is a median."""
    own = table[table["recipe"] == name]
    columns = ("metric", "cost")
    kinds = next((own[column] for column in columns if column in own), None)
    if kinds is None or not has_median(own):
        return ""
    of = kinds[own["median"].notna()].unique()
    return ", median" if len(of) == kinds.nunique() else f", median of {' and '.join(of).replace('_', ' ')}"


def limits(axes: Axes, lines: pd.DataFrame, metric: Column, marked: Mapping[str, float]) -> None:
    """Set the y axis by the values after the start, or by all values if it is logarithmic."""
    drawn = pd.concat([drawn_line(own) for _, own in lines.groupby("recipe")]) if len(lines) else lines
    if metric.log:
        axes.set(yscale="log", ylim=marks.log_limits([*drawn["centre"], *marked.values()], metric.edge))
    else:
        axes.set_ylim(*marks.zoomed([*marks.settled(drawn), *marked.values()], metric))


def cut_off(table: pd.DataFrame, metrics: Metrics) -> list[str]:
    """Return sentences on the means that leave their panel, with their peaks."""
    found = []
    for metric in metrics.shown:
        above = table[(table["metric"] == metric.column) & (table["centre"] > metric.edge)]
        if len(above):
            peaks = above.loc[above.groupby("recipe")["centre"].idxmax()]
            said = [f"{row.recipe} reaches {row.centre:.3g} at step {row.step}" for row in peaks.itertuples()]
            cut = f"The {metric.label} is cut off above {metric.edge:.3g}: {'; '.join(said)}."
            instead = " Such a recipe has its median, without a band, in place of its mean."
            found.append(cut + (instead if "median" in table else ""))
    return found


def _band_sentence(table: pd.DataFrame, trials: pd.DataFrame, band: Band, metrics: Metrics) -> str:
    most = int(table["n"].max()) if len(table) else 0
    text = f"{marks.band_words(band, most == 1)}."
    if not all(metric.log for metric in metrics.shown):
        text += f" {marks.START_WORDS}"
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

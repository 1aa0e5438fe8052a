"""Tables of trials and curves: what figures are drawn from, and what is printed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pandas as pd

from ahf_cli.experiment.records import CHANCE_ACCURACY, CHANCE_LOSS
from ahf_cli.experiment.statistics import Band, band, carry_forward, count, summarize


@dataclass(frozen=True)
class Metric:
    """A column of trials and curves: its label, which way is better, and its value for guessing."""

    column: str
    label: str
    better: Literal["lower", "higher"]
    chance: float


METRICS = {
    m.column: m
    for m in (
        Metric("train_loss", "training loss", "lower", CHANCE_LOSS),
        Metric("test_accuracy", "test accuracy", "higher", CHANCE_ACCURACY),
    )
}
AT_CHANCE, LEFT_OUT, NOTHING = "at chance", "left out", "–"


def recipe_names(trials: pd.DataFrame, planned: Mapping[str, int]) -> list[str]:
    """Names of the planned recipes, then of others that have trials."""
    return list(dict.fromkeys([*planned, *trials["recipe"]]))


def final_table(trials: pd.DataFrame, planned: Mapping[str, int]) -> pd.DataFrame:
    """Sum up final values: one row per metric, recipe and way to treat diverged trials.

    `trials` is as of `trials_frame`.  Columns: metric, recipe, diverged_trials, n (values summed up),
    planned, ok, diverged, failed, stalled (a part of ok), mean, standard_error, standard_deviation, median,
    best, worst.
    """
    rows = []
    for metric in METRICS.values():
        for recipe in recipe_names(trials, planned):
            own = trials[trials["recipe"] == recipe]
            for how in (AT_CHANCE, LEFT_OUT):
                values = own[metric.column].to_numpy(float) if len(own) else np.empty(0)
                chance = metric.chance if how == AT_CHANCE else None
                summary = asdict(summarize(values, list(own["status"]), metric.better, chance))
                head = {"metric": metric.label, "recipe": recipe, "diverged_trials": how}
                counts = {"n": summary.pop("n"), "planned": planned.get(recipe, len(own))}
                for key in ("ok", "diverged", "failed"):
                    counts[key] = summary.pop(key)
                counts["stalled"] = int(own["stalled"].sum()) if len(own) else 0
                rows.append({**head, **counts, **summary})
    return pd.DataFrame(rows)


def curve_table(curves: pd.DataFrame, metric: str, kind: Band) -> pd.DataFrame:
    """Centre and band of one metric at each evaluation of each recipe: the data of a line with its band.

    `curves` is as of `curves_frame`; diverged trials are carried forward at chance, failed ones left out.
    Columns: metric, recipe, step, n, centre, low, high.
    """
    frames = []
    curves = curves[curves["status"] != "failed"]
    for recipe, own in curves.groupby("recipe", sort=False):
        # With every trial diverged, the recipe's own evaluations end too early.
        whole = own if (own["status"] == "ok").any() else curves
        steps = np.sort(whole["step"].unique())
        values = own.pivot_table(index="trial", columns="step", values=metric, dropna=False)
        values = values.reindex(columns=steps)
        diverged = own.groupby("trial")["status"].first().reindex(values.index) == "diverged"
        filled = carry_forward(values.to_numpy(), diverged.to_numpy(), METRICS[metric].chance)
        centre, low, high = band(filled, kind)
        frames.append(
            pd.DataFrame(
                {"metric": metric, "recipe": recipe, "step": steps, "n": count(filled)}
                | {"centre": centre, "low": low, "high": high}
            )
        )
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
        centre, low, high = band(x, kind)
        frames.append(
            pd.DataFrame(
                {"quantity": column, "step": values.columns, "n": count(x)}
                | {"centre": centre, "low": low, "high": high}
            )
        )
    return pd.concat(frames, ignore_index=True)


def readable(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return a final table as tables of text by title: the numbers of trials, then one table a metric.

    A recipe without diverged trials has one row a metric: the two ways to treat them agree.
    """
    counts = table.drop_duplicates("recipe")[["recipe", "planned", "ok", "stalled", "diverged", "failed"]]
    texts = {"Trials (stalled: a part of ok)": counts.astype(str)}
    for metric in METRICS.values():
        own = table[table["metric"] == metric.label]
        own = own[(own["diverged"] > 0) | (own["diverged_trials"] == AT_CHANCE)]
        how = own["diverged_trials"].where(own["diverged"] > 0, NOTHING)
        columns = {"recipe": own["recipe"], "diverged": how, "n": own["n"].astype(str)}
        pairs = zip(own["mean"], own["standard_error"], strict=True)
        columns["mean ± SE"] = pd.Series([f"{number(m)} ± {number(e)}" for m, e in pairs], own.index)
        for key, label in (("standard_deviation", "SD"), ("median", "median"), ("best", "best")):
            columns[label] = own[key].map(number)
        texts[f"Final {metric.label} ({metric.better} is better)"] = pd.DataFrame(columns)
    return texts


def number(value: float) -> str:
    """Write a number in four digits; a dash where there is none."""
    if math.isnan(value):
        return NOTHING
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"


def is_words(column: pd.Series[str]) -> bool:
    """Tell whether a column of text is to be aligned to the left."""
    return any(cell[:1].isalpha() for cell in column)


def as_text(texts: Mapping[str, pd.DataFrame]) -> str:
    """Lay out tables of text in aligned columns, each under its title."""
    return "\n\n".join(f"{title}\n{_aligned(table)}" for title, table in texts.items())


def _aligned(texts: pd.DataFrame) -> str:
    columns = [[name, *texts[name]] for name in texts.columns]
    laid = []
    for cells in columns:
        width = max(len(cell) for cell in cells)
        words = is_words(pd.Series(cells[1:]))
        laid.append([cell.ljust(width) if words else cell.rjust(width) for cell in cells])
    return "\n".join("  ".join(row).rstrip() for row in zip(*laid, strict=True))

"""Final values of all trials: single values, distributions, and statistics by recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import pandas as pd

from ahf_cli.report import marks
from ahf_cli.report.canvas import Drawing, Theme
from ahf_cli.report.exhibits.exhibit import Exhibit
from ahf_cli.report.outcomes import at_baseline
from ahf_cli.report.plotting import Figure
from ahf_cli.report.statistics.clusters import mean_of_all, mean_of_trained
from ahf_cli.report.statistics.interval import iqm_interval, wilson_interval
from ahf_cli.report.statistics.sample import empirical_distribution, summarize
from ahf_cli.report.study_data import StudyData, recipe_names
from ahf_cli.report.style import styles
from ahf_cli.report.text import Table, number, spread_interval, within
from ahf_cli.tasks.metrics import Column, Metrics
from ahf_cli.training.outcome import OUTCOMES

ALL, TRAINED = "all", "trained"
"""The trials of a row of statistics."""


def final_table(trials: pd.DataFrame, planned: Mapping[str, int], metrics: Metrics) -> pd.DataFrame:
    """Statistics of final values, one row per metric, recipe, and all or only the trained trials.

    `trials` has the columns of `StudyData.trials`.  Columns are metric, recipe, trials (`ALL` or `TRAINED`)
    and n, the number of values.  Numbers of trials are planned, trained, stood_still, did_not_train, diverged
    and failed; loss_fell counts those whose training loss fell by 5 %.  Statistics are mean, standard_error,
    standard_deviation, median, best and worst.  The columns mean, iqm (bootstrap) and share_trained (Wilson)
    have 95 % intervals in `_low` and `_high`.  A mean over two clusters has no interval: see `two_clusters`.
    """
    rows = []
    for metric in metrics.shown:
        for recipe in recipe_names(trials, planned):
            own = trials[trials["recipe"] == recipe]
            rows += [
                _row(own, metric, recipe, planned.get(recipe, len(own)), which) for which in (ALL, TRAINED)
            ]
    return pd.DataFrame(rows)


def _row(own: pd.DataFrame, metric: Column, recipe: str, planned: int, which: str) -> dict[str, object]:
    """Return the statistics of one metric of one recipe's trials."""
    outcome = own["outcome"] if len(own) else pd.Series(dtype=str)
    values = at_baseline(own, metric) if len(own) else pd.Series(dtype=float)
    if which == TRAINED:
        values = values[outcome == "trained"]
    values = values.dropna()
    found = {str(k): int(n) for k, n in outcome.value_counts().items()}
    finished = sum(found.get(what, 0) for what in OUTCOMES)
    fell = int(((own["status"] == "ok") & ~own["stalled"].astype(bool)).sum()) if len(own) else 0
    row: dict[str, object] = {"metric": metric.label, "recipe": recipe, "trials": which, "n": len(values)}
    row |= {"planned": planned, **{w.replace(" ", "_"): found.get(w, 0) for w in (*OUTCOMES, "failed")}}
    row |= {"loss_fell": fell, **asdict(summarize(values.to_numpy(float), metric.better))}
    trained = found.get("trained", 0)
    mean = mean_of_trained(values) if which == TRAINED else mean_of_all(values, trained, finished)
    row |= spread_interval("mean", mean.clipped(0, metric.top))
    row |= spread_interval("iqm", iqm_interval(values.to_numpy(float), np.random.default_rng(0)))
    return row | spread_interval("share_trained", wilson_interval(trained, finished))


def readable(table: pd.DataFrame, metrics: Metrics) -> dict[str, pd.DataFrame]:
    """Return a final table as tables of text by title: the numbers of trials, then one table a metric.

    A recipe whose trials have all trained has one row a metric.
    """
    first = table.drop_duplicates("recipe")
    counts = first[["recipe", "planned", *(w.replace(" ", "_") for w in OUTCOMES), "failed"]].astype(str)
    counts["share trained, 95 %"] = [within(row, "share_trained", 2) for row in first.to_dict("records")]
    counts["loss fell by 5 %"] = first["loss_fell"].astype(str)
    texts = {"Trials": counts.rename(columns=lambda name: str(name).replace("_", " "))}
    trained = table.groupby("recipe")["trained"].first() == table.groupby("recipe")["n"].max()
    for metric in metrics.shown:
        own = table[table["metric"] == metric.label]
        own = own[(own["trials"] == ALL) | ~own["recipe"].map(trained).astype(bool)]
        columns = {"recipe": own["recipe"], "trials": own["trials"], "n": own["n"].astype(str)}
        pairs = zip(own["mean"], own["standard_error"], strict=True)
        columns["mean ± SE"] = pd.Series([f"{number(m)} ± {number(e)}" for m, e in pairs], own.index)
        for key, title in (("mean", "mean, 95 %"), ("iqm", "IQM, 95 %")):
            columns[title] = pd.Series([within(row, key) for row in own.to_dict("records")], own.index)
        columns["SD"], columns["median"] = (own[k].map(number) for k in ("standard_deviation", "median"))
        columns["best"] = own["best"].map(number)
        texts[f"Final {metric.label} ({metric.better} is better)"] = pd.DataFrame(columns)
    return texts


def final_values(trials: pd.DataFrame, names: list[str], metrics: Metrics) -> Drawing:
    """Return a drawing of each trial's final training loss and headline, with a box per recipe."""
    done = trials[trials["status"] != "failed"]
    table = done[["recipe", "trial", "status", "outcome"]].assign(
        **{m.column: at_baseline(done, m) for m in metrics.shown}
    )
    looks = styles(names)
    drawn = [name for name in names if (table["recipe"] == name).any()]
    caption = [
        f"Final values, one point a trial (n: {marks.counts(trials, names)}). A box has quartiles and "
        "median, with whiskers to the last point within 1.5 interquartile ranges. ×: diverged, "
        f"{'drawn at chance' if metrics.guessing else 'without a value'}."
        + marks.cut_words(table, metrics.loss, drawn)
    ]

    def draw(figure: Figure, theme: Theme) -> None:
        panels = marks.grid(figure, theme, 2)
        for at, (axes, metric) in enumerate(zip(panels, metrics.shown, strict=True)):
            for row, name in enumerate(reversed(drawn)):
                own = table[table["recipe"] == name]
                values, ok = own[metric.column].to_numpy(float), (own["status"] == "ok").to_numpy()
                if len(own) >= 5:
                    axes.boxplot(
                        values[np.isfinite(values)], positions=[row], orientation="horizontal",
                        widths=0.72, showfliers=False, manage_ticks=False, medianprops={"color": "black"},
                        boxprops={"color": "0.5"}, whiskerprops={"color": "0.5"}, capprops={"color": "0.5"},
                    )  # fmt: skip
                height = row + marks.spread(own["trial"], 0.26)
                color, marker = looks[name].color, looks[name].marker
                axes.scatter(
                    values[ok], height[ok], s=15, marker=marker, edgecolors=color, alpha=0.75,
                    facecolors=looks[name].face, linewidths=0.7, zorder=3,
                )  # fmt: skip
                axes.scatter(
                    values[~ok], height[~ok], s=22, color=color, marker="x", linewidths=1.1, zorder=3
                )
            named = at == 0 or theme.stacked
            axes.set_yticks(range(len(drawn)), [*reversed(drawn)] if named else [""] * len(drawn))
            axes.set_ylim(-0.6, len(drawn) - 0.4)
            axes.grid(False, axis="y")
            axes.set_xlabel(f"final {marks.labelled(metric, theme)}")
            if metric.log:
                axes.set(xscale="log", xlim=marks.log_limits(table[metric.column], metric.edge))
            else:
                axes.set_xlim(*marks.zoomed(table[metric.column], metric))
            marks.baseline(axes, metric, upright=True)

    size = max(0.6, 0.13 * len(drawn) + 0.35)
    return Drawing("final_values", "Final values of all trials", table, caption, draw, panels=2, height=size)


def distribution(trials: pd.DataFrame, names: list[str], metrics: Metrics) -> Drawing:
    """Return a drawing of the share of trials with a final training loss of at most x, with its band."""
    metric = metrics.loss
    done = trials[trials["status"] != "failed"]
    frames = []
    for name in names:
        own = done[done["recipe"] == name]
        if len(own):
            found = empirical_distribution(at_baseline(own, metric).fillna(np.inf))
            frames.append(pd.DataFrame({"recipe": name, "n": len(own), **found._asdict()}))
    table = pd.concat(frames, ignore_index=True)
    looks = styles(names)
    caption = [
        "Share of the trials with a final training loss of at most x; a curve further left and up is better. "
        "The band holds the whole true distribution with 95 % probability if the trials are independent "
        "(Dvoretzky-Kiefer-Wolfowitz; "
        f"drawn from n = {marks.FEW} on). n: {marks.counts(trials, names)}."
        f"{marks.diverged_words(trials, metrics)}"
    ]

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        finite = table["value"][np.isfinite(table["value"])]
        start, end = marks.zoomed(finite, metric)
        if metric.log:
            start, end = marks.log_limits(finite, metric.edge)
        for name in table["recipe"].unique():
            own = table[table["recipe"] == name]
            label = f"{name}, n = {own['n'].iloc[0]}"
            marks.stairs(axes, own, looks[name], label, start, end, filled=len(names) <= marks.FILLED)
        axes.set(
            xlim=(start, end), xscale="log" if metric.log else "linear", ylim=(0, 1),
            xlabel=f"final {marks.labelled(metric, theme)}", ylabel="share of trials at most at x",
        )  # fmt: skip
        marks.baseline(axes, metric, upright=True)
        marks.legend(figure, theme)

    return Drawing("distribution", "Distribution of the final loss", table, caption, draw)


def _table(data: StudyData) -> Table:
    finals = final_table(data.trials, data.planned, data.metrics)
    note = f"{marks.capped_words(data.metrics)}{marks.outcome_words(data.trials, data.metrics)}"
    return Table("final_values", finals, readable(finals, data.metrics), note.strip())


EXHIBIT = Exhibit(
    4,
    [lambda d, _: _table(d)],
    {
        "final_values": lambda d, _: final_values(d.trials, d.recipes, d.metrics),
        "distribution": lambda d, _: distribution(d.trials, d.recipes, d.metrics),
    },
)

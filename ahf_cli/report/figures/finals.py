"""F2 and F3: final values of all trials, one by one and as distributions."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ahf_cli.report.canvas import Drawing, Theme
from ahf_cli.report.figures import marks
from ahf_cli.report.plotting import Figure
from ahf_cli.report.statistics import empirical_distribution
from ahf_cli.report.style import styles
from ahf_cli.report.tables import at_baseline
from ahf_cli.tasks.metrics import Metrics


def final_values(trials: pd.DataFrame, names: list[str], metrics: Metrics) -> Drawing:
    """Draw each trial's final training loss and test accuracy, with a box per recipe."""
    done = trials[trials["status"] != "failed"]
    table = done[["recipe", "trial", "status", "stalled"]].assign(
        **{m.column: at_baseline(done, m) for m in metrics.shown}
    )
    looks = styles(names)
    drawn = [name for name in names if (table["recipe"] == name).any()]
    caption = [
        f"Final values, one point a trial (n: {marks.counts(trials, names)}); box: quartiles and median, "
        "whiskers to the last point within 1.5 interquartile ranges. ×: diverged, "
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
                    values[ok],
                    height[ok],
                    s=15,
                    color=color,
                    marker=marker,
                    alpha=0.75,
                    linewidths=0,
                    zorder=3,
                )
                axes.scatter(
                    values[~ok], height[~ok], s=22, color=color, marker="x", linewidths=1.1, zorder=3
                )
            named = at == 0 or not theme.caption
            axes.set_yticks(range(len(drawn)), [*reversed(drawn)] if named else [""] * len(drawn))
            axes.set_ylim(-0.6, len(drawn) - 0.4)
            axes.grid(False, axis="y")
            marks.baseline(axes, metric, upright=True)
            axes.set_xlabel(f"final {marks.labelled(metric, theme)}")
            axes.set_xlim(*marks.limits(metric, float(np.nanmax(table[metric.column], initial=0.0))))

    size = max(0.6, 0.13 * len(drawn) + 0.35)
    return Drawing("final_values", "Final values of all trials", table, caption, draw, panels=2, height=size)


def distribution(trials: pd.DataFrame, names: list[str], metrics: Metrics) -> Drawing:
    """Draw the share of trials whose final training loss is at most x, with its simultaneous band."""
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
        "Share of the trials whose final training loss is at most the value below (further left "
        "and up is better), with the band that holds the whole true distribution with 95 % probability "
        "(Dvoretzky-Kiefer-Wolfowitz, "
        f"trials taken as independent; drawn from n = {marks.FEW} on). n: {marks.counts(trials, names)}."
        f"{marks.diverged_words(trials, metrics)}"
    ]

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        finite = table["value"][np.isfinite(table["value"])]
        _, end = marks.limits(metric, float(finite.max()) if len(finite) else 0.0)
        for name in table["recipe"].unique():
            own = table[table["recipe"] == name]
            marks.stairs(axes, own, looks[name], f"{name}, n = {own['n'].iloc[0]}", 0, end)
        marks.baseline(axes, metric, upright=True)
        axes.set(
            xlim=(0, end), ylim=(0, 1), xlabel=f"final {marks.labelled(metric, theme)}",
            ylabel="share of trials at most there",
        )  # fmt: skip
        marks.legend(figure, theme)

    return Drawing("distribution", "Distribution of the final loss", table, caption, draw)

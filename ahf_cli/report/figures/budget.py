"""F4: the best after k trials, and who wins with that budget."""

from __future__ import annotations

import pandas as pd

from ahf_cli.report.canvas import Drawing, Theme
from ahf_cli.report.figures import marks
from ahf_cli.report.plotting import Figure
from ahf_cli.report.style import styles
from ahf_cli.report.tables.budget import beating_table, expected_best_table
from ahf_cli.tasks.metrics import Column


def expected_best(trials: pd.DataFrame, names: list[str], objective: Column, *, independent: bool) -> Drawing:
    """Draw the expected best of k trials of independent trials, or the best so far, and P(beats)."""
    best = expected_best_table(trials, names, independent=independent)
    reference = next(name for name in names if (best["recipe"] == name).any())
    beats = _against(beating_table(trials, names), reference) if independent else pd.DataFrame()
    looks = styles(names)
    table = pd.concat([best, beats], ignore_index=True)
    label = objective.label
    if independent:
        caption = [
            f"First panel: expected best {label} of k random trials, unbiased, with its 95 % interval "
            "(bootstrap-t) up to k = n/2, where it can be given; second: probability that the best of k "
            f"trials beats that of {reference}, with its 95 % interval up to k = n/4. "
            f"n: {marks.counts(trials, names)}."
        ]
    else:
        caption = [
            f"Best {label} after k trials, in the order of the search: its trials depend on each other, so "
            f"there is no interval. n: {marks.counts(trials, names)}."
        ]

    def draw(figure: Figure, theme: Theme) -> None:
        panels = marks.grid(figure, theme, 2 if len(beats) else 1)
        renamed = best.rename(columns={"best": "centre", "best_low": "low", "best_high": "high"})
        for name in best["recipe"].unique():
            marks.line(panels[0], renamed[renamed["recipe"] == name], looks[name], name, "k")
        panels[0].set(xlabel="trials k", ylabel=f"best {label} of k trials ({objective.short})")
        panels[0].set_ylim(0, None)
        if len(beats):
            panels[1].axhline(0.5, color="0.45", linewidth=0.8, linestyle=(0, (1, 3)))
            for name in beats["recipe"].unique():
                marks.line(panels[1], beats[beats["recipe"] == name], looks[name], None, "k")
            panels[1].set(xlabel="trials k", ylabel=f"P(beats {reference})", ylim=(-0.02, 1.02))
        for axes in panels if best["k"].max() > 12 else []:
            axes.set_xscale("log")
            ticks = [k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500) if k <= best["k"].max()]
            axes.set_xticks(ticks, [str(k) for k in ticks])
            axes.minorticks_off()
        for axes in panels if best["k"].max() <= 12 else []:
            axes.set_xticks(range(1, int(best["k"].max()) + 1))
        marks.legend(figure, theme)

    panels = 2 if len(beats) else 1
    return Drawing("expected_best", "Best of k trials", table, caption, draw, panels=panels)


def _against(beats: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Turn the pairs of a reference into lines: P(recipe beats it)."""
    forward = beats[beats["b"] == reference].assign(recipe=lambda t: t["a"])
    back = beats[beats["a"] == reference].assign(recipe=lambda t: t["b"])
    turned = back.assign(p=1 - back["p"], p_low=1 - back["p_high"], p_high=1 - back["p_low"])
    both = pd.concat([forward, turned], ignore_index=True)
    named = both.rename(columns={"p": "centre", "p_low": "low", "p_high": "high"})
    return named[["recipe", "k", "centre", "low", "high"]].assign(how=f"beats {reference}")

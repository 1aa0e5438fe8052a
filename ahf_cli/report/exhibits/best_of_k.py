"""The best of k trials, and the probability that it beats another recipe's best."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pandas as pd

from ahf_cli.report import marks
from ahf_cli.report.canvas import Drawing, Theme
from ahf_cli.report.exhibits.exhibit import Exhibit
from ahf_cli.report.plotting import Figure
from ahf_cli.report.statistics.best_of import (
    best_so_far,
    expected_best_interval,
    probability_of_beating_interval,
)
from ahf_cli.report.study_data import ranked
from ahf_cli.report.style import styles
from ahf_cli.report.text import NOTHING, Table, spread_interval, within
from ahf_cli.tasks.metrics import Column

LISTED = (1, 2, 5, 10, 20, 50)
"""budgets k in the printed table"""


def budgets(n: int) -> list[int]:
    """Return about 20 budgets from 1 to n, dense at the start."""
    if not n:
        return []
    spaced = {int(v) for v in np.geomspace(1, n, 16)}
    return sorted({*range(1, min(n, 6) + 1), *spaced, *(k for k in LISTED if k <= n), n})


def expected_best_table(trials: pd.DataFrame, names: list[str], *, independent: bool) -> pd.DataFrame:
    """Best loss after k trials: columns recipe, n, k, how, best, best_low, best_high.

    `how` is `expected` for independent trials, else `so far`, in the order of the search.
    """
    rows = []
    done = ranked(trials)
    for name in names:
        own = done[done["recipe"] == name].sort_values("trial")
        values = own["value"].to_numpy(float)
        if independent:
            rng = np.random.default_rng(0)
            for k in budgets(len(values)):
                found = expected_best_interval(values, k, rng).clipped(0, math.inf)
                rows.append(
                    {"recipe": name, "n": len(values), "k": k, "how": "expected"}
                    | spread_interval("best", found)
                )
        else:
            for k, best in enumerate(best_so_far(values), start=1):
                rows.append({"recipe": name, "n": len(values), "k": k, "how": "so far", "best": best}
                            | {"best_low": np.nan, "best_high": np.nan})  # fmt: skip
    columns = ["recipe", "n", "k", "how", "best", "best_low", "best_high"]
    return pd.DataFrame(rows, columns=columns)


def beating_table(trials: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """P(best of k trials of A is better than best of k of B): columns a, b, k, p, p_low, p_high."""
    done = ranked(trials)
    values = {name: done[done["recipe"] == name]["value"].to_numpy(float) for name in names}
    rows = []
    for a, b in combinations([name for name in names if len(values[name])], 2):
        for k in budgets(min(len(values[a]), len(values[b]))):
            found = probability_of_beating_interval(values[a], values[b], k)
            rows.append({"a": a, "b": b, "k": k} | spread_interval("p", found))
    return pd.DataFrame(rows, columns=["a", "b", "k", "p", "p_low", "p_high"])


def budget_table(trials: pd.DataFrame, names: list[str], objective: Column, *, independent: bool) -> Table:
    """Return the table of the best loss at some budgets k."""
    numbers = expected_best_table(trials, names, independent=independent)
    largest = int(numbers["k"].max()) if len(numbers) else 0
    listed = [k for k in LISTED if k < largest] + ([largest] if largest else [])
    text = {"recipe": names}
    for k in listed:
        at = {row["recipe"]: row for row in numbers[numbers["k"] == k].to_dict("records")}
        text[f"k = {k}"] = [within(at[name], "best", 3) if name in at else NOTHING for name in names]
    what = "Expected best" if independent else "Best so far"
    note = "" if independent else "Trials of a Bayesian search depend on each other and have no interval."
    return Table("best_of_k", numbers, {f"{what} {objective.label} of k trials": pd.DataFrame(text)}, note)


def beats_table(trials: pd.DataFrame, names: list[str]) -> Table:
    """Return the table of P(beats) of each pair of recipes at some budgets k."""
    numbers = beating_table(trials, names)
    listed = [k for k in LISTED if k in set(numbers["k"])]
    rows = []
    for (a, b), own in numbers.groupby(["a", "b"], sort=False):
        at = {row["k"]: row for row in own.to_dict("records")}
        rows.append(
            {"pair": f"{a} beats {b}"}
            | {f"k = {k}": within(at[k], "p", 2) if k in at else NOTHING for k in listed}
        )
    return Table("beats", numbers, {"P(best of k trials is better)": pd.DataFrame(rows)})


def expected_best(trials: pd.DataFrame, names: list[str], objective: Column, *, independent: bool) -> Drawing:
    """Return a drawing of the expected best of k independent trials and P(beats), or of the best so far."""
    best = expected_best_table(trials, names, independent=independent)
    reference = next(name for name in names if (best["recipe"] == name).any())
    beats = _against(beating_table(trials, names), reference) if independent else pd.DataFrame()
    looks = styles(names)
    table = pd.concat([best, beats], ignore_index=True)
    label = objective.label
    if independent:
        caption = [
            f"The first panel shows the expected best {label} of k random trials, unbiased, with its 95 % "
            "interval (bootstrap-t) up to k = n/2. The second panel shows the probability that the best of k "
            f"trials beats the best of {reference}, with its 95 % interval up to k = n/4. "
            f"n: {marks.counts(trials, names)}."
        ]
    else:
        caption = [
            f"Best {label} after k trials, in the order of the search. These trials depend on each other, so "
            f"they have no interval. n: {marks.counts(trials, names)}."
        ]

    def draw(figure: Figure, theme: Theme) -> None:
        panels = marks.grid(figure, theme, 2 if len(beats) else 1)
        renamed = best.rename(columns={"best": "centre", "best_low": "low", "best_high": "high"})
        for name in best["recipe"].unique():
            own = renamed[renamed["recipe"] == name]
            marks.line(panels[0], own, looks[name], name, "k", filled=len(names) <= marks.FILLED)
        panels[0].set(xlabel="trials k", ylabel=f"best {label} of k trials ({objective.short})")
        if objective.log:
            panels[0].set(yscale="log", ylim=marks.log_limits(best["best"], objective.edge))
        else:
            panels[0].set_ylim(*marks.zoomed(best["best"], objective))
        if len(beats):
            panels[1].axhline(0.5, color="0.45", linewidth=0.8, linestyle=(0, (1, 3)))
            for name in beats["recipe"].unique():
                own = beats[beats["recipe"] == name]
                marks.line(panels[1], own, looks[name], None, "k", filled=len(names) <= marks.FILLED)
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
    """Return P(recipe beats the reference) as a table of lines, one a recipe."""
    forward = beats[beats["b"] == reference].assign(recipe=lambda t: t["a"])
    back = beats[beats["a"] == reference].assign(recipe=lambda t: t["b"])
    turned = back.assign(p=1 - back["p"], p_low=1 - back["p_high"], p_high=1 - back["p_low"])
    both = pd.concat([forward, turned], ignore_index=True)
    named = both.rename(columns={"p": "centre", "p_low": "low", "p_high": "high"})
    return named[["recipe", "k", "centre", "low", "high"]].assign(how=f"beats {reference}")


EXHIBIT = Exhibit(
    5,
    [
        lambda d, _: budget_table(d.trials, d.recipes, d.minimized, independent=d.independent),
        lambda d, _: beats_table(d.trials, d.recipes) if d.independent else None,
    ],
    {
        "expected_best": lambda d, _: expected_best(
            d.trials, d.recipes, d.minimized, independent=d.independent
        )
    },
)

"""The best configuration of each recipe, trained again with new seeds: the basis of a claim."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ahf_cli.report.statistics import (
    cliffs_delta,
    holm,
    mean_interval,
    paired_difference,
    paired_permutation_test,
)
from ahf_cli.report.tables.metrics import at_baseline, ranked
from ahf_cli.report.tables.text import Table, number, spread_interval, within
from ahf_cli.tasks.metrics import Column, Metrics


def best_trials(trials: pd.DataFrame, objective: str) -> pd.DataFrame:
    """Return the row of each recipe's best trial by recipe, the least value first."""
    done = ranked(trials).sort_values(["value", objective, "trial"])
    return done.drop_duplicates("recipe").set_index("recipe")


def rerun_table(
    trials: pd.DataFrame, reruns: pd.DataFrame, names: list[str], objective: str, metrics: Metrics
) -> Table:
    """Mean over the new seeds, and the luck in the search's value: search value − mean of the re-runs.

    A positive luck in accuracy, or a negative one in loss, is optimism of the search.
    """
    best = best_trials(trials, objective)
    rows = []
    for name in names:
        own = reruns[reruns["recipe"] == name]
        if not len(own):
            continue
        row: dict[str, object] = {"recipe": name, "n": len(own), "search_trial": best["trial"].get(name)}
        for column in dict.fromkeys([objective, *(m.column for m in metrics.shown)]):
            metric = metrics.column(column)
            values = at_baseline(own, metric).dropna().to_numpy(float)
            searched = float(best[column].get(name, np.nan))
            row |= spread_interval(column, mean_interval(values).clipped(0, metric.top))
            row |= {f"{column}_search": searched, f"{column}_luck": searched - _mean(values)}
        rows.append(row)
    numbers = pd.DataFrame(rows)
    text: dict[str, object] = {"recipe": [r["recipe"] for r in rows], "n": [str(r["n"]) for r in rows]}
    for column in dict.fromkeys([objective, metrics.headline.column]):
        label = column.replace("_", " ")
        text[f"{label}, 95 %"] = [within(row, column) for row in rows]
        text[f"luck in {label}"] = [number(float(str(row[f"{column}_luck"]))) for row in rows]
    title = "Re-runs of the best configuration with new seeds"
    return Table("reruns", numbers, {title: pd.DataFrame(text)})


def pairs_table(reruns: pd.DataFrame, names: list[str], metrics: Metrics) -> Table:
    """Each pair of recipes on the same new seeds: mean difference A − B, Cliff's delta, permutation p (Holm).

    Holm's correction is over the metrics of each pair.  Over all pairs as well, no difference between seven
    recipes could be told with ten seeds: the smallest p of such a test is 2/2¹⁰.
    """
    rows = []
    drawn = [name for name in names if (reruns["recipe"] == name).any()]
    for (a, b), metric in ((pair, m) for pair in combinations(drawn, 2) for m in metrics.shown):
        both = _paired(reruns, a, b, metric)
        rng = np.random.default_rng(0)
        x, y = both[a].to_numpy(float), both[b].to_numpy(float)
        rows.append(
            {"a": a, "b": b, "metric": metric.column, "pairs": len(both)}
            | spread_interval("difference", paired_difference(x, y))
            | spread_interval("delta", cliffs_delta(x, y))
            | {"p": paired_permutation_test(x, y, rng)}
        )
    numbers = pd.DataFrame(rows, columns=_PAIR_COLUMNS if not rows else None)
    numbers["p_holm"] = [
        p for _, own in numbers.groupby(["a", "b"], sort=False) for p in holm(list(own["p"]))
    ]
    text = pd.DataFrame(
        {
            "pair": [f"{r.a} − {r.b}" for r in numbers.itertuples()],
            "metric": [metrics.column(m).label for m in numbers["metric"]],
            "pairs": numbers["pairs"].astype(str),
            "difference, 95 %": [within(row, "difference") for row in numbers.to_dict("records")],
            "Cliff's delta, 95 %": [within(row, "delta", 2) for row in numbers.to_dict("records")],
            "p (Holm)": [number(p, 3) for p in numbers["p_holm"]],
        }
    )
    note = "Paired by seed; two-sided sign-flip permutation test of the mean, Holm over a pair's metrics."
    return Table("rerun_pairs", numbers, {"Pairs of recipes on the same new seeds": text}, note)


_PAIR_COLUMNS = [
    "a", "b", "metric", "pairs", "difference", "difference_low", "difference_high", "delta", "delta_low",
    "delta_high", "p",
]  # fmt: skip


def _paired(reruns: pd.DataFrame, a: str, b: str, metric: Column) -> pd.DataFrame:
    """One row a seed that both have, one column a recipe."""
    valued = reruns.assign(value=at_baseline(reruns, metric))
    sides = [valued[valued["recipe"] == name].set_index("seed")["value"].rename(name) for name in (a, b)]
    return pd.concat(sides, axis=1, join="inner").dropna()


def _mean(values: ArrayLike) -> float:
    x = np.asarray(values, dtype=float)
    return float(x.mean()) if len(x) else float("nan")

"""What a search of k trials finds: the best that can be expected, and who wins."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pandas as pd

from ahf_cli.report.statistics import (
    best_so_far,
    expected_best_interval,
    probability_of_beating_interval,
)
from ahf_cli.report.tables.metrics import ranked
from ahf_cli.report.tables.text import NOTHING, Table, spread_interval, within
from ahf_cli.tasks.metrics import Column

LISTED = (1, 2, 5, 10, 20, 50)
"""budgets in the printed table"""


def budgets(n: int) -> list[int]:
    """Return about 20 budgets from 1 to n, dense at the start."""
    if not n:
        return []
    spaced = {int(v) for v in np.geomspace(1, n, 16)}
    return sorted({*range(1, min(n, 6) + 1), *spaced, *(k for k in LISTED if k <= n), n})


def expected_best_table(trials: pd.DataFrame, names: list[str], *, independent: bool) -> pd.DataFrame:
    """Best loss after k trials: columns recipe, n, k, how, best, best_low, best_high.

    `how` is `expected` where trials are independent, else `so far`, in the order of the search.
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
    """P(best of k trials of A is better than that of B): columns a, b, k, p, p_low, p_high."""
    done = ranked(trials)
    values = {name: done[done["recipe"] == name]["value"].to_numpy(float) for name in names}
    rows = []
    for a, b in combinations([name for name in names if len(values[name])], 2):
        for k in budgets(min(len(values[a]), len(values[b]))):
            found = probability_of_beating_interval(values[a], values[b], k)
            rows.append({"a": a, "b": b, "k": k} | spread_interval("p", found))
    return pd.DataFrame(rows, columns=["a", "b", "k", "p", "p_low", "p_high"])


def budget_table(trials: pd.DataFrame, names: list[str], objective: Column, *, independent: bool) -> Table:
    """Return the table of the best loss after some budgets."""
    numbers = expected_best_table(trials, names, independent=independent)
    largest = int(numbers["k"].max()) if len(numbers) else 0
    listed = [k for k in LISTED if k < largest] + ([largest] if largest else [])
    text = {"recipe": names}
    for k in listed:
        at = {row["recipe"]: row for row in numbers[numbers["k"] == k].to_dict("records")}
        text[f"k = {k}"] = [within(at[name], "best", 3) if name in at else NOTHING for name in names]
    what = "Expected best" if independent else "Best so far"
    note = "" if independent else "Trials of a Bayesian search depend on each other: no interval."
    return Table("best_of_k", numbers, {f"{what} {objective.label} of k trials": pd.DataFrame(text)}, note)


def beats_table(trials: pd.DataFrame, names: list[str]) -> Table:
    """Return the table of who wins at some budgets."""
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

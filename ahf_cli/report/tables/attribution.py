"""What each single choice does: recipes that differ in one choice, on the same hyperparameters and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pandas as pd

from ahf_cli.recipes.structure import Structure
from ahf_cli.report.statistics import paired_difference
from ahf_cli.report.tables.metrics import at_baseline
from ahf_cli.report.tables.text import NOTHING, Table, spread_interval, within
from ahf_cli.tasks.metrics import Column, Metrics

_FIXED_WITH = {("step_size", "lr"), ("clipping", "radius")}
"""A fixed hyperparameter that only a choice brings with it is no second difference."""


@dataclass(frozen=True)
class Change:
    """Two recipes, and the one choice in which the second differs from the first."""

    before: str
    after: str
    key: str
    old: str
    new: str


def single_changes(recipes: Mapping[str, Mapping[str, Any]], order: list[str]) -> list[Change]:
    """Find the pairs of recipes that differ in one choice or fixed hyperparameter, earlier ones first.

    `recipes` is {name: {structure: {…}, fixed: {…}}}, as in a study's identity.
    """
    known = [name for name in order if name in recipes]
    found = []
    for before, after in combinations(known, 2):
        differs = _differences(recipes[before], recipes[after])
        if len(differs) == 1:
            ((key, (old, new)),) = differs.items()
            found.append(Change(before, after, key, old, new))
    return found


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    both = all("curvature" in recipe.get("structure", {}) for recipe in (a, b))  # they have choices
    for part in ("structure", "fixed"):
        one, two = a.get(part, {}), b.get(part, {})
        for key in dict.fromkeys([*one, *two]):
            absent = getattr(Structure, key, "free") if part == "structure" and both else "free"
            old, new = str(one.get(key, absent)), str(two.get(key, absent))
            if old != new:
                found[key] = (old, new)
    for choice, hyperparameter in _FIXED_WITH:
        if choice in found and "free" in found.get(hyperparameter, ()):
            del found[hyperparameter]
    return found


def attribution_table(
    trials: pd.DataFrame, recipes: Mapping[str, Mapping[str, Any]], names: list[str], metrics: Metrics
) -> Table:
    """Effect of each single change, after − before, over pairs of trials with equal hyperparameters and seed.

    Pairs are matched by slot; a slot whose shared hyperparameters or seed differ is no pair and is left out.
    Diverged trials count at the baseline, and so does every loss above it; without one they are no pair.
    """
    done = trials[trials["status"] != "failed"]
    rows = []
    for change in single_changes(recipes, names):
        pairs, slots = _pairs(done, change)
        row: dict[str, Any] = vars(change) | {"pairs": len(pairs), "slots": slots}
        for metric in metrics.shown:
            before, after = (_values(pairs, side, metric) for side in ("_before", "_after"))
            both = before.notna() & after.notna()
            row |= spread_interval(metric.column, paired_difference(after[both], before[both]))
        for what in ("diverged", "stalled"):
            row |= {
                f"{what}_before": _count(pairs, "_before", what),
                f"{what}_after": _count(pairs, "_after", what),
            }
        rows.append(row)
    numbers = pd.DataFrame(rows)
    text = pd.DataFrame(
        {
            "from": [row["before"] for row in rows],
            "one choice changed": [f"{row['key']}: {row['old']} → {row['new']}" for row in rows],
            "to": [row["after"] for row in rows],
            "pairs": [f"{row['pairs']} of {row['slots']}" for row in rows],
            **{f"{m.label}, 95 %": [_signed(row, m.column) for row in rows] for m in reversed(metrics.shown)},
            "diverged": [f"{row['diverged_before']} → {row['diverged_after']}" for row in rows],
            "did not train": [f"{row['stalled_before']} → {row['stalled_after']}" for row in rows],
        }
    )
    counted = (
        "diverged trials and losses above it at chance" if metrics.guessing else "diverged trials left out"
    )
    note = (
        "Mean difference, after − before, over trials with the same hyperparameters and training seed; "
        f"{counted}; Student's interval over pairs."
    )
    return Table("attribution", numbers, {"What each single choice does": text}, note)


def _pairs(done: pd.DataFrame, change: Change) -> tuple[pd.DataFrame, int]:
    """Return the trials of both side by side, one row a slot with equal settings, and the slots of both."""
    before, after = (
        done[done["recipe"] == name].set_index("trial") for name in (change.before, change.after)
    )
    both = before.add_suffix("_before").join(after.add_suffix("_after"), how="inner")
    equal = both["seed_before"] == both["seed_after"]
    for key in (c for c in done.columns if c.startswith("params.") and c != f"params.{change.key}"):
        old, new = both[f"{key}_before"], both[f"{key}_after"]
        equal &= (old == new) | old.isna() | new.isna() | _brought(key, change)
    return both[equal], len(both)


def _brought(key: str, change: Change) -> bool:
    return (change.key, key.removeprefix("params.")) in _FIXED_WITH


def _values(pairs: pd.DataFrame, side: str, metric: Column) -> pd.Series[float]:
    frame = pd.DataFrame({"status": pairs[f"status{side}"], metric.column: pairs[f"{metric.column}{side}"]})
    # One runaway loss of thousands would hide every other effect: no loss counts as worse than guessing.
    values = at_baseline(frame, metric)
    capped = metric.better == "lower" and metric.baseline is not None
    return values.clip(upper=metric.baseline) if capped else values


def _count(pairs: pd.DataFrame, side: str, what: str) -> int:
    diverged = pairs[f"status{side}"] == "diverged"
    return int(diverged.sum() if what == "diverged" else pairs[f"stalled{side}"].astype(bool).sum())


def _signed(row: Mapping[str, Any], name: str) -> str:
    text = within(row, name, 3)
    return text if text == NOTHING or text.startswith("-") else f"+{text}"

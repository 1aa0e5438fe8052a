"""The effect of each single choice, between recipes that differ in one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from ahf_cli.recipes.structure import Structure
from ahf_cli.report import marks
from ahf_cli.report.canvas import Drawing, Theme
from ahf_cli.report.exhibits.acts import SIGNIFICANT
from ahf_cli.report.exhibits.exhibit import Choices, Exhibit
from ahf_cli.report.outcomes import at_baseline
from ahf_cli.report.plotting import Figure, MaxNLocator
from ahf_cli.report.statistics.clusters import two_clusters
from ahf_cli.report.statistics.pairs import mcnemar_test, paired_difference
from ahf_cli.report.study_data import StudyData
from ahf_cli.report.text import NOTHING, Table, spread_interval, within
from ahf_cli.tasks.metrics import Column, Metrics
from ahf_cli.training.outcome import OUTCOMES

_FIXED_WITH = {("step_size", "lr"), ("clipping", "radius")}
"""Pairs of a choice and its fixed hyperparameter, which together count as one difference."""


@dataclass(frozen=True)
class SingleChange:
    """Two recipes and the only choice in which they differ."""

    before: str
    after: str
    key: str
    old: str
    new: str


def single_changes(recipes: Mapping[str, Mapping[str, Any]], order: list[str]) -> list[SingleChange]:
    """Return the pairs of recipes that differ in one choice or fixed hyperparameter, in the given order.

    `recipes` is `{name: {structure: {…}, fixed: {…}}}`, as in a study's identity.
    """
    known = [name for name in order if name in recipes]
    found = []
    for before, after in combinations(known, 2):
        differs = _differences(recipes[before], recipes[after])
        if len(differs) == 1:
            ((key, (old, new)),) = differs.items()
            found.append(SingleChange(before, after, key, old, new))
    return found


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    both = all("curvature" in recipe.get("structure", {}) for recipe in (a, b))  # both recipes have choices
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

    Pairs are matched by slot; a slot with different shared hyperparameters or seeds is left out.  Diverged
    trials, and losses above the baseline, have its value; without a baseline their pairs are left out.
    A difference has no interval if the trials of a recipe have two clusters: see `two_clusters`.  `gained`
    and `lost` count the pairs of which one trial alone trained, and `p_trained` is McNemar's.
    """
    done = trials[trials["status"] != "failed"]
    rows = []
    for change in single_changes(recipes, names):
        pairs, slots = _pairs(done, change)
        trained = [pairs[f"outcome{side}"] == "trained" for side in ("_before", "_after")]
        clusters = any(two_clusters(int(own.sum()), len(pairs)) for own in trained)
        gained, lost = (int((one & ~other).sum()) for one, other in (trained[::-1], trained))
        row: dict[str, Any] = vars(change) | {"pairs": len(pairs), "slots": slots}
        row |= {"gained": gained, "lost": lost, "p_trained": mcnemar_test(gained, lost)}
        for metric in metrics.shown:
            before, after = (_values(pairs, side, metric) for side in ("_before", "_after"))
            both = before.notna() & after.notna()
            found = paired_difference(after[both], before[both])
            row |= spread_interval(metric.column, found.without_ends() if clusters else found)
        for what in OUTCOMES:
            for side in ("_before", "_after"):
                row[f"{what.replace(' ', '_')}{side}"] = _count(pairs, side, what)
        rows.append(row)
    numbers = pd.DataFrame(rows)
    text = pd.DataFrame(
        {
            "from": [row["before"] for row in rows],
            "one choice changed": [f"{row['key']}: {row['old']} → {row['new']}" for row in rows],
            "to": [row["after"] for row in rows],
            "pairs": [f"{row['pairs']} of {row['slots']}" for row in rows],
            "gained, lost": [f"{row['gained']}, {row['lost']}" for row in rows],
            "p": [f"{row['p_trained']:.2g}" for row in rows],
            **{f"{m.label}, 95 %": [_signed(row, m.column) for row in rows] for m in reversed(metrics.shown)},
            **{str(what): [_course(row, what.replace(" ", "_")) for row in rows] for what in OUTCOMES},
        }
    )
    counted = (
        "diverged trials and losses above it at chance" if metrics.guessing else "diverged trials left out"
    )
    note = (
        "Mean difference, after − before, over trials with the same hyperparameters and training seed, "
        f"with Student's interval over pairs, none for two clusters; {counted}. Gained and lost are pairs of "
        "which one trial alone trained, and p is McNemar's exact one, without a correction."
    )
    return Table("attribution", numbers, {"Effect of each single choice": text}, note)


def _pairs(done: pd.DataFrame, change: SingleChange) -> tuple[pd.DataFrame, int]:
    """Return the trials of both recipes, one row a slot with equal settings, and their number of slots."""
    before, after = (
        done[done["recipe"] == name].set_index("trial") for name in (change.before, change.after)
    )
    both = before.add_suffix("_before").join(after.add_suffix("_after"), how="inner")
    equal = both["seed_before"] == both["seed_after"]
    for key in (c for c in done.columns if c.startswith("params.") and c != f"params.{change.key}"):
        old, new = both[f"{key}_before"], both[f"{key}_after"]
        equal &= (old == new) | old.isna() | new.isna() | _brought(key, change)
    return both[equal], len(both)


def _brought(key: str, change: SingleChange) -> bool:
    return (change.key, key.removeprefix("params.")) in _FIXED_WITH


def _values(pairs: pd.DataFrame, side: str, metric: Column) -> pd.Series[float]:
    frame = pd.DataFrame({"status": pairs[f"status{side}"], metric.column: pairs[f"{metric.column}{side}"]})
    return at_baseline(frame, metric)


def _count(pairs: pd.DataFrame, side: str, what: str) -> int:
    return int((pairs[f"outcome{side}"] == what).sum())


def _course(row: Mapping[str, Any], what: str) -> str:
    return f"{row[f'{what}_before']} → {row[f'{what}_after']}"


def _signed(row: Mapping[str, Any], name: str) -> str:
    text = within(row, name, 3)
    return text if text == NOTHING or text.startswith("-") else f"+{text}"


def attribution(table: pd.DataFrame, metrics: Metrics) -> Drawing | str:
    """Return a drawing of the effects of single changes, one row a change."""
    if not len(table):
        return "no two recipes differ in one choice"
    drawn = table.iloc[::-1].reset_index(drop=True)
    fewest, most = int(table["pairs"].min()), int(table["pairs"].max())
    n = f"{most}" if fewest == most else f"{fewest} to {most}"
    counted = (
        "Diverged trials, and losses above it, count at chance"
        if metrics.guessing
        else "Pairs with a diverged trial are left out"
    )
    caption = [
        "Effect of one changed choice: mean difference after − before with its 95 % interval (Student's t). "
        f"Trials of a pair have the same hyperparameters and training seed, with n = {n} pairs a row. "
        "Two clusters of trials, trained and not, have no interval. Coloured: the interval leaves out 0, or "
        f"McNemar's exact p of the pairs that gained and lost training is below {SIGNIFICANT}. "
        f"{counted}."
    ]

    def draw(figure: Figure, theme: Theme) -> None:
        panels = marks.grid(figure, theme, 2)
        for axes, metric in zip(panels, (metrics.headline, metrics.loss), strict=True):
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter("{x:.3g}")  # an exponent beside the axis would cover its label
            column = metric.column
            for row, found in enumerate(drawn.to_dict("records")):
                centre, low, high = (found[f"{column}{end}"] for end in ("", "_low", "_high"))
                helps = (low > 0) if metric.better == "higher" else (high < 0)
                harms = (high < 0) if metric.better == "higher" else (low > 0)
                if np.isnan(low) and found["p_trained"] < SIGNIFICANT:
                    helps, harms = found["gained"] > found["lost"], found["gained"] < found["lost"]
                color = "#009E73" if helps else "#D55E00" if harms else "0.35"
                marker = "^" if helps else "v" if harms else "o"
                axes.plot([low, high], [row, row], color=color, linewidth=2)
                axes.plot(centre, row, marker, color=color, markersize=6)
            axes.axvline(0, color="0.45", linewidth=0.8)
            named = axes is panels[0] or theme.stacked
            labels = [f"{r['before']}\n{r['key']}: {r['new']}" for r in drawn.to_dict("records")]
            axes.set_yticks(
                range(len(drawn)), labels if named else [""] * len(drawn), fontsize=marks.small(axes)
            )
            axes.set_ylim(-0.6, len(drawn) - 0.4)
            axes.grid(False, axis="y")
            better = "right" if metric.better == "higher" else "left"
            axes.set_xlabel(f"change of {metric.label} ({better} is better)")

    size = max(0.5, 0.1 * len(drawn) + 0.3)
    return Drawing("attribution", "Effect of each single choice", table, caption, draw, panels=2, height=size)


def _table(data: StudyData) -> Table:
    return attribution_table(data.trials, data.described, data.recipes, data.metrics)


def _asked(data: StudyData, choices: Choices) -> Table | None:
    return _table(data) if choices.attribute else None


def _figure(data: StudyData, choices: Choices) -> Drawing | str | None:
    return attribution(_table(data).numbers, data.metrics) if choices.attribute else None


EXHIBIT = Exhibit(0, [_asked], {"attribution": _figure})

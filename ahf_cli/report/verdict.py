"""The verdict of a comparison in sentences: the leader, the differences, the conditions."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pandas as pd

from ahf_cli.report.conditions import conditions, differences
from ahf_cli.report.exhibits.equal_cost import PLURAL
from ahf_cli.report.statistics.interval import Interval, mean_interval
from ahf_cli.report.study_data import StudyData, at_baseline
from ahf_cli.report.text import Table
from ahf_cli.tasks.metrics import Column

ENOUGH_TRIALS = 20
"""least trials a recipe for a claim"""
ENOUGH_SEEDS = 5
"""least new seeds a recipe for a claim"""
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Verdict:
    """A verdict; with `claim` False it only describes the trials."""

    sentences: tuple[str, ...]
    claim: bool
    condition: str
    refused: tuple[str, ...] = ()
    """differences between the conditions of the recipes"""
    forced: bool = False
    leader: str | None = None
    caveats: tuple[str, ...] = field(default=())

    @property
    def stamp(self) -> str:
        """The text across figures of a forced verdict, else ''."""
        return f"FORCED: {'; '.join(self.refused)}" if self.forced and self.refused else ""

    def lines(self) -> list[str]:
        """Return the verdict as paragraphs."""
        if self.refused and not self.forced:
            return ["No verdict, since conditions differ:", *(f"- {line}" for line in self.refused)]
        head = [f"{self.stamp}."] if self.stamp else []
        return [*head, *self.sentences, *self.caveats, f"Condition: {self.condition}."]


def verdict(data: StudyData, pairs: Table, equal_cost: Table, robustness: Table, *, force: bool) -> Verdict:
    """Return the verdict from the re-runs of a study, or without re-runs a description of the search.

    A claim needs the design `fair`, at least `ENOUGH_TRIALS` trials a recipe and `ENOUGH_SEEDS` new seeds.
    """
    refused = tuple(differences(data))
    names = [name for name in data.recipes if (data.trials["recipe"] == name).any()]
    known = len(data.reruns) and data.design == "fair"
    if len(names) < 2:
        alone = f"{names[0]} is the only recipe with trials, and a comparison needs two."
        sentences, leader = [alone if names else "No recipe has trials."], None
        return Verdict(tuple(sentences), False, conditions(data), refused, force)
    few = [] if not known else _few(data)
    if known and not few:
        sentences, leader = _from_reruns(data, pairs)
    else:
        sentences, leader = _from_trials(data, names)
        sentences.append(_why_no_claim(data, few))
    caveats = [
        *_cost_caveat(equal_cost, leader, data.metrics.headline),
        *_robustness_caveat(robustness, leader, data.metrics.headline),
    ]
    claim = bool(known and not few and not refused)
    return Verdict(tuple(sentences), claim, conditions(data), refused, force, leader, tuple(caveats))


def _few(data: StudyData) -> list[str]:
    """Return one line for each number that is too small for a claim."""
    done = data.trials[data.trials["status"] != "failed"]["recipe"].value_counts()
    seeds = data.reruns["recipe"].value_counts()
    lines = []
    for name in data.recipes:
        if done.get(name, 0) < ENOUGH_TRIALS:
            lines.append(f"{name} has {done.get(name, 0)} trials of the {ENOUGH_TRIALS} that a claim needs")
        if seeds.get(name, 0) < ENOUGH_SEEDS:
            lines.append(f"{name} has {seeds.get(name, 0)} re-runs of the {ENOUGH_SEEDS} that a claim needs")
    return lines


def _why_no_claim(data: StudyData, few: list[str]) -> str:
    if few:
        return f"This description supports no claim: {'; '.join(few)}."
    if not data.independent:
        return (
            "This description supports no claim: the trials of a Bayesian search depend on each other, and "
            "recipes have different numbers of hyperparameters. Search with design fair."
        )
    if data.design != "fair":
        return "This description supports no claim: the design is not fair."
    return "This description supports no claim: there are no re-runs with new seeds."


def _from_reruns(data: StudyData, pairs: Table) -> tuple[list[str], str | None]:
    """Compare the leader in the mean headline with every other recipe, on the same seeds."""
    metric = data.metrics.headline
    higher = metric.better == "higher"
    valued = data.reruns.assign(value=at_baseline(data.reruns, metric))
    means = valued.groupby("recipe")["value"].mean().dropna().sort_values(ascending=not higher)
    if not len(means):
        return ["Every re-run has diverged, so no recipe is ahead."], None
    leader = str(means.index[0])
    rows = pairs.numbers[pairs.numbers["metric"] == metric.column]
    sentences = []
    for other in means.index[1:]:
        row = rows[rows["a"].isin([leader, other]) & rows["b"].isin([leader, other])].iloc[0]
        sign = (1 if row["a"] == leader else -1) * (1 if higher else -1)
        ends = sorted(sign * row[f"difference{end}"] for end in ("_low", "_high"))
        size = f"{_size(sign * row['difference'])} (95 % {_size(ends[0])} to {_size(ends[1])})"
        sure = row["p_holm"] < SIGNIFICANT and ends[0] > 0
        word = "is better than" if sure else "is not shown to be better than"
        sentences.append(
            f"{leader} {word} {other}: {metric.label} {metric.better} by {size} over {row['pairs']} paired "
            f"seeds, p = {row['p_holm']:.2g} after Holm's correction over metrics."
        )
    return sentences, leader


def _size(value: float) -> str:
    """Return a difference as text with three decimals, or a tiny one with three significant digits."""
    return f"{value:.3f}" if abs(value) >= 5e-4 or value == 0 else f"{value:.3g}"


def _from_trials(data: StudyData, names: list[str]) -> tuple[list[str], str | None]:
    """Describe the recipes by the mean final headline over the trials of the search."""
    metric = data.metrics.headline
    done = data.trials[data.trials["status"] != "failed"]
    found = {
        name: mean_interval(values).clipped(0, metric.top)
        for name in names
        if len(values := at_baseline(done[done["recipe"] == name], metric).dropna())
    }
    if not found:
        return ["Every trial has diverged, so no recipe is ahead."], None
    sign = -1 if metric.better == "higher" else 1
    ordered = sorted(found, key=lambda name: sign * found[name].estimate)
    digits = 3 if np.isfinite(metric.top) else 4
    said = []
    for name in ordered:
        mean, low, high = found[name]
        band = f" (95 % {low:.{digits - 1}g} to {high:.{digits - 1}g})"
        if np.isfinite(metric.top):
            band = f" (95 % {low:.2f} to {high:.2f})"
        band = band if np.isfinite(low) else " (one value, no interval)"
        said.append(f"{name} {mean:.3f}{band}" if np.isfinite(metric.top) else f"{name} {mean:.4g}{band}")
    apart = [f"{a} and {b}" for a, b in combinations(ordered, 2) if _apart(found[a], found[b], sign)]
    sentences = [f"Mean final {metric.label} over all trials: {', '.join(said)}."]
    if apart:
        sentences.append(f"The intervals do not overlap for {', '.join(apart)}.")
    elif sum(bool(np.isfinite(interval.low)) for interval in found.values()) > 1:
        sentences.append("All intervals overlap.")
    return sentences, ordered[0]


def _apart(better: Interval, worse: Interval, sign: int) -> bool:
    """Return whether the whole interval of the better recipe is better than the other interval."""
    return better.low > worse.high if sign < 0 else better.high < worse.low


def _cost_caveat(equal_cost: Table, leader: str | None, metric: Column) -> list[str]:
    """Return sentences on the recipes that are ahead at equal cost."""
    table = equal_cost.numbers
    if leader is None or not len(table):
        return []
    ahead: dict[str, str] = {}
    for cost, own in table.groupby("cost", sort=False):
        best = own.dropna(subset=metric.column).sort_values(metric.column, ascending=metric.better == "lower")
        if not len(best):
            continue
        ahead[PLURAL.get(str(cost), str(cost))] = str(best["recipe"].iloc[0])
    others: dict[str, list[str]] = {}
    for cost, name in ahead.items():
        if name != leader:
            others.setdefault(name, []).append(f"equal {cost}")
    if not others:
        return [f"{leader} also leads over the trials of the search at equal {', '.join(ahead)}."]
    over = f"mean {metric.label} over all trials of the search"
    return [f"At {' and '.join(c)}, {name} is ahead of {leader} in {over}." for name, c in others.items()]


def _robustness_caveat(robustness: Table, leader: str | None, metric: Column) -> list[str]:
    """Return sentences on the recipes that are ahead by other summaries of the headline."""
    table: pd.DataFrame = robustness.numbers
    if leader is None or not len(table):
        return []
    own = table[(table["metric"] == metric.label) & (table["winner"] != "")]
    others = own[own["winner"] != leader]
    if not len(others):
        return [f"By every summary of the trials' {metric.label}, {leader} is ahead."]
    by = others.groupby("winner", sort=False)["way"]
    summaries = f"other summaries of the trials' {metric.label}"
    return [f"{winner} is ahead of {leader} by {summaries}: {'; '.join(ways)}." for winner, ways in by]

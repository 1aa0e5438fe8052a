"""The verdict of a comparison in sentences: the leader, the differences, the conditions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from ahf_cli.report.conditions import conditions, differences
from ahf_cli.report.exhibits.acts import without_effect
from ahf_cli.report.exhibits.equal_cost import PLURAL
from ahf_cli.report.outcomes import at_baseline
from ahf_cli.report.shared import shared_sentences
from ahf_cli.report.statistics.clusters import mean_of_all
from ahf_cli.report.statistics.interval import Interval
from ahf_cli.report.study_data import StudyData
from ahf_cli.report.text import Table
from ahf_cli.tasks.metrics import Column

ENOUGH_TRIALS = 20
"""least trials a recipe for a claim"""
SIGNIFICANT = 0.05
ONE_SEED = "All draws share one training seed, so that intervals over draws hold for this seed alone."


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
    shared: tuple[str, ...] = ()
    """trials that the studies have in common"""

    @property
    def stamp(self) -> str:
        """The text across figures of a forced verdict, else ''."""
        return f"FORCED: {'; '.join(self.refused)}" if self.forced and self.refused else ""

    def lines(self) -> list[str]:
        """Return the verdict as paragraphs."""
        if self.refused and not self.forced:
            lines = (f"- {line}" for line in self.refused)
            return ["No verdict, since conditions differ:", *lines, *self.shared]
        head = [f"{self.stamp}."] if self.stamp else []
        return [*head, *self.sentences, *self.caveats, *self.shared, f"Condition: {self.condition}."]


def verdict(
    data: StudyData, pairs: Table, equal_cost: Table, robustness: Table, acts: Table, *, force: bool
) -> Verdict:
    """Return the verdict from the re-runs of a study, or without re-runs a description of the search.

    A claim needs the design `fair`, `ENOUGH_TRIALS` trials a recipe, and as many new seeds as a difference
    needs to be significant after Holm's correction.
    """
    refused = tuple(differences(data))
    names = [name for name in data.recipes if (data.trials["recipe"] == name).any()]
    known = len(data.reruns) and data.design == "fair"
    if len(names) < 2:
        alone = f"{names[0]} is the only recipe with trials, and a comparison needs two."
        sentences, leader = [alone if names else "No recipe has trials."], None
        return Verdict(tuple(sentences), False, conditions(data), refused, force)
    few = [] if not known else _few(data, int(pairs.numbers["p"].notna().sum()))
    if known and not few:
        sentences, leader = _from_reruns(data, pairs)
    else:
        sentences, leader = _from_trials(data, names)
        sentences.append(_why_no_claim(data, few))
    caveats = [
        *([ONE_SEED] if data.one_seed else []),
        *_cost_caveat(equal_cost, data.metrics.headline),
        *_robustness_caveat(robustness, leader, data.metrics.headline),
        *_acts_caveat(acts, data.minimized),
    ]
    claim = bool(known and not few and not refused)
    shared = tuple(shared_sentences(data))
    return Verdict(tuple(sentences), claim, conditions(data), refused, force, leader, tuple(caveats), shared)


def _few(data: StudyData, tests: int) -> list[str]:
    """Return one line for each number that is too small for a claim."""
    done = data.trials[data.trials["status"] != "failed"]["recipe"].value_counts()
    seeds = data.reruns["recipe"].value_counts()
    needed = seeds_needed(tests)
    return [
        *_below(done, data.recipes, ENOUGH_TRIALS, "trials that a claim needs"),
        *_below(seeds, data.recipes, needed, f"new seeds that {tests} tests need"),
    ]


def _below(counts: pd.Series[int], names: list[str], needed: int, what: str) -> list[str]:
    few = {name: int(counts.get(name, 0)) for name in names if counts.get(name, 0) < needed}
    if len(few) == len(names) and len(set(few.values())) == 1:
        return [f"each recipe has {few[names[0]]} of the {needed} {what}"]
    return [f"{name} has {n} of the {needed} {what}" for name, n in few.items()]


def seeds_needed(tests: int) -> int:
    """Return the least n for which a sign-flip test of n pairs, p ≥ 2¹⁻ⁿ, can pass Holm's correction."""
    return 1 + math.ceil(math.log2(max(tests, 1) / SIGNIFICANT))


def _why_no_claim(data: StudyData, few: list[str]) -> str:
    if few:
        return f"This description supports no claim: {'; '.join(few)}."
    if not data.independent:
        return (
            "This description supports no claim. The trials of a Bayesian search depend on each other, and "
            "recipes have different numbers of hyperparameters. Search with design fair."
        )
    if data.design != "fair":
        return f"This description supports no claim: the design is {data.design}, not fair."
    return "This description supports no claim: there are no re-runs with new seeds."


def _from_reruns(data: StudyData, pairs: Table) -> tuple[list[str], str | None]:
    """Compare the leader with every other recipe on the same seeds.

    Validation chooses the leader, and the test set judges.
    """
    metric = data.metrics.headline
    chosen = data.metrics.column(f"validation_{metric.column.partition('_')[2]}")
    higher = metric.better == "higher"
    if (data.reruns["status"] != "ok").all():
        return ["Every re-run has diverged, so no recipe is ahead."], None
    valued = data.reruns.assign(value=at_baseline(data.reruns, chosen))
    means = valued.groupby("recipe")["value"].mean().dropna().sort_values(ascending=not higher)
    leader = str(means.index[0])
    rows = pairs.numbers[pairs.numbers["metric"] == metric.column]
    sentences = [f"{leader} has the best mean {chosen.label} of the re-runs."]
    for other in means.index[1:]:
        own = rows[rows["a"].isin([leader, other]) & rows["b"].isin([leader, other])]
        if len(own):  # else the same runs in two studies
            sentences.append(_pair_sentence(leader, str(other), own.iloc[0], metric))
    return sentences, leader


def _pair_sentence(leader: str, other: str, row: pd.Series[Any], metric: Column) -> str:
    """Return the comparison of two recipes on the test set."""
    sign = (1 if row["a"] == leader else -1) * (1 if metric.better == "higher" else -1)
    size = sign * row["difference"]
    ahead, behind = (leader, other) if size >= 0 else (other, leader)
    seeds = f"{row['pairs']} seeds"
    if np.isnan(row["p_holm"]):
        return f"The pair {leader} and {other} is no named contrast, and is not tested."
    p = f"p = {row['p_holm']:.2g}"
    if row["p_holm"] >= SIGNIFICANT:
        return f"Neither {leader} nor {other} is shown to be ahead in {metric.label} ({seeds}, {p})."
    if np.isnan(row["difference_low"]):
        counts = {row["a"]: row["trained_a"], row["b"]: row["trained_b"]}
        return (
            f"{ahead} is ahead of {behind} in {metric.label} by {_size(abs(size))} ({seeds}, {p}); "
            f"{counts[ahead]} and {counts[behind]} re-runs trained."
        )
    low, high = sorted(np.sign(size) * sign * row[f"difference{end}"] for end in ("_low", "_high"))
    return (
        f"{ahead} is ahead of {behind} in {metric.label} by {_size(abs(size))} "
        f"[{_size(low)}, {_size(high)}] ({seeds}, {p})."
    )


def _size(value: float) -> str:
    """Return a difference as text with three decimals, or a tiny one with three significant digits."""
    return f"{value:.3f}" if 5e-4 <= abs(value) < 1e4 or value == 0 else f"{value:.3g}"


def _from_trials(data: StudyData, names: list[str]) -> tuple[list[str], str | None]:
    """Describe the recipes by the final headline over the trials of the search."""
    metric = data.metrics.headline
    done = data.trials[data.trials["status"] != "failed"]
    found: dict[str, tuple[Interval, int, int]] = {}
    for name in names:
        own = done[done["recipe"] == name]
        if len(values := at_baseline(own, metric).dropna()):
            trained = int((own["outcome"] == "trained").sum())
            mean = mean_of_all(values, trained, len(own)).clipped(0, metric.top)
            found[name] = mean, trained, len(own)
    if not found:
        return ["Every trial has diverged, so no recipe is ahead."], None
    sign = -1 if metric.better == "higher" else 1
    ordered = sorted(found, key=lambda name: sign * found[name][0].estimate)
    sentences = []
    for name in ordered:
        mean, trained, n = found[name]
        band = f" [{_size(mean.low)}, {_size(mean.high)}]" if np.isfinite(mean.low) else ""
        sentences.append(
            f"{name} trained in {trained} of {n} trials, with mean final {metric.label} "
            f"{_size(mean.estimate)}{band} over all."
        )
    return sentences, ordered[0]


def _cost_caveat(equal_cost: Table, metric: Column) -> list[str]:
    """Return a sentence for each cost on the best mean at the largest common one, or on a missing value."""
    table = equal_cost.numbers
    if not len(table):
        return []
    said = []
    for cost, own in table.groupby("cost", sort=False):
        name = PLURAL.get(str(cost), str(cost))
        own = own[own["at"] == own["at"].max()]
        absent = list(own.loc[own[metric.column].isna(), "recipe"])
        if absent:
            said.append(f"At equal {name}, the order is unknown: {', '.join(absent)} had no evaluation yet.")
            continue
        best = own.sort_values(metric.column, ascending=metric.better == "lower").iloc[0]
        said.append(
            f"At equal {name}, {best['recipe']} has the best mean {metric.label} over the draws, "
            f"{_size(best[metric.column])}."
        )
    return said


def _robustness_caveat(robustness: Table, leader: str | None, metric: Column) -> list[str]:
    """Return sentences on the recipes that are ahead by other summaries of the headline."""
    table: pd.DataFrame = robustness.numbers
    if leader is None or not len(table):
        return []
    own = table[(table["metric"] == metric.label) & (table["winner"] != "")]
    others = own[own["winner"] != leader]
    if not len(others):
        return [f"{leader} has the best {metric.label} over the draws by every summary."]
    by = others.groupby("winner", sort=False)["way"]
    return [
        f"{winner} has the best {metric.label} over the draws by: {', '.join(ways)}." for winner, ways in by
    ]


def _acts_caveat(acts: Table, objective: Column) -> list[str]:
    """Return a sentence on the recipes of which no searched hyperparameter acts."""
    names = without_effect(acts.numbers)
    if not names:
        return []
    return [f"No searched hyperparameter of {', '.join(names)} is shown to act on the {objective.label}."]

"""The trials of a recipe beside a published curve: means, edges of the band, and how fast the mean moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ahf_cli.report.exhibits.published_curves import beside_table, read_curve
from ahf_cli.tasks.metrics import Column, Metrics

Array = NDArray[np.floating[Any]]


def alike(changes: Array, of_mean: Array) -> float:
    """Return the number n of independent trials whose mean fluctuates as a given mean does.

    A change is the difference between two evaluations in a row.  The change of a mean of n independent
    trials has the n-th part of a trial's variance: n = mean over trials of Var(change) / Var(change of mean).

    Args:
        changes: those of N trials, (changes, N).
        of_mean: those of the given mean, (other changes,).
    """
    return float(changes.var(axis=0).mean() / of_mean.var())


def of_more(n: float, trials: int, more: int) -> float:
    """Return `alike` of the mean of more trials, if that of some is n.

    The changes of two trials have one correlation r, so that n = K/(1 + (K − 1) r) for K trials.
    """
    correlation = (trials / n - 1) / (trials - 1)
    return more / (1 + (more - 1) * correlation)


def wide(evaluations: pd.DataFrame, metric: Column, first: int) -> pd.DataFrame:
    """Return values from a step on, (evaluations, trials); a trial that diverged counts as guessing."""
    own = evaluations.pivot_table(index="step", columns="trial", values=metric.column, dropna=False)
    return own[own.index >= first].fillna(metric.baseline)


def changes_of(values: pd.DataFrame | pd.Series[Any]) -> Array:
    """Return the changes between evaluations in a row that are as far apart as most are."""
    apart = values.index.to_series().diff()
    found: Array = values.diff()[apart == apart.mode().iloc[0]].to_numpy(float)
    return found


class Beside:
    """Trials of one recipe beside a published curve."""

    def __init__(self, evaluations: pd.DataFrame, source: str, metrics: Metrics):
        self.recipe = str(evaluations["recipe"].iloc[0])
        self.curve = read_curve(source)
        self.table = beside_table(evaluations, {self.recipe: source}, {source: self.curve}, metrics)
        self._evaluations = evaluations
        self._headline = metrics.headline

    @property
    def n(self) -> int:
        """Number of trials."""
        return int(self._evaluations["trial"].nunique())

    def at(self, step: int, metric: str = "test_accuracy") -> pd.Series[Any]:
        """Return the row of `beside_table` at a step."""
        own = self.table[(self.table["metric"] == metric) & (self.table["step"] == step)]
        return own.iloc[0]

    def errors(self, steps: list[int], metric: str = "test_accuracy") -> tuple[float, float]:
        """Return the least and the largest difference over some steps, in standard errors."""
        found = [float(self.at(step, metric)["in_errors"]) for step in steps]
        return min(found), max(found)

    def beyond(self, errors: float, metric: str = "test_accuracy") -> float:
        """Return the share of evaluations whose difference is larger than so many standard errors."""
        own = self.table.loc[self.table["metric"] == metric, "in_errors"]
        return float((own.abs() > errors).mean())

    def capped_loss(self, step: int, cap: float) -> float:
        """Return the mean training loss at a step; each trial has at most the cap, a diverged one the cap."""
        own = self._evaluations[self._evaluations["step"] == step].set_index("trial")["train_loss"]
        return float(own.reindex(self._evaluations["trial"].unique()).fillna(np.inf).clip(upper=cap).mean())

    def distance(self, metric: str = "test_accuracy") -> float:
        """Return the median over the evaluations of |mean − published mean|."""
        return float(self.table.loc[self.table["metric"] == metric, "difference"].abs().median())

    def edges(self, first: int) -> dict[str, tuple[float, float]]:
        """Return how far the edges of bands of the headline by some rules are from the published band.

        Each pair has the medians over the evaluations from `first` on: |lower edge − published one|, and
        |upper edge − published one|.
        """
        values, theirs = wide(self._evaluations, self._headline, first), self._published()
        low, mean, high = (np.interp(values.index, theirs.index, theirs[c]) for c in ("low", "mean", "high"))
        centre, sd = values.mean(axis=1), values.std(axis=1, ddof=1)
        found = {
            "mean ± standard error": (centre - sd / self.n**0.5, centre + sd / self.n**0.5),
            "mean ± standard deviation": (centre - sd, centre + sd),
            "published mean ± standard deviation": (mean - sd, mean + sd),
            "quartiles": (values.quantile(0.25, axis=1), values.quantile(0.75, axis=1)),
            "least and largest trial": (values.min(axis=1), values.max(axis=1)),
        }
        return {
            rule: (float((lower - low).abs().median()), float((upper - high).abs().median()))
            for rule, (lower, upper) in found.items()
        }

    def fluctuates_as(self, first: int) -> float:
        """Return `alike` of the published mean of the headline, by these trials, from a step on."""
        changes = changes_of(wide(self._evaluations, self._headline, first))
        theirs = self._published()
        return alike(changes, changes_of(theirs["mean"][theirs.index >= first]))

    def _published(self) -> pd.DataFrame:
        return self.curve[self.curve["metric"] == self._headline.column].set_index("step")

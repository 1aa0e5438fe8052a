"""What is compared: columns of trials and curves, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from ahf_cli.tasks.chance import Chance


@dataclass(frozen=True)
class Metric:
    """A column of trials and curves: its label, which way is better, and its unit."""

    column: str
    label: str
    better: Literal["lower", "higher"]
    unit: str
    short: str
    """of the unit"""
    top: float = 1.0
    """largest possible value; the least is 0"""

    def at(self, chance: Chance) -> float:
        """Return its value for guessing."""
        return chance.loss if self.better == "lower" else chance.accuracy


METRICS = {
    m.column: m
    for m in (
        Metric("train_loss", "training loss", "lower", "mean cross-entropy, nats", "nats", math.inf),
        Metric("test_accuracy", "test accuracy", "higher", "fraction correct", "fraction"),
    )
}


def recipe_names(trials: pd.DataFrame, planned: Mapping[str, int]) -> list[str]:
    """Names of the planned recipes, then of others that have trials."""
    return list(dict.fromkeys([*planned, *trials["recipe"]]))


def at_chance(trials: pd.DataFrame, metric: Metric, chance: Chance) -> pd.Series[float]:
    """Return final values with each diverged trial at chance; NaN for failed ones."""
    values = trials[metric.column].astype(float)
    return values.where(trials["status"] == "ok", metric.at(chance)).where(trials["status"] != "failed")


def ranked(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the finished trials, with what the sampler was told, min(objective, chance), in `value`."""
    return trials[trials["status"] != "failed"].astype({"value": float})


OBJECTIVES = {"train_loss": "training loss", "validation_loss": "validation loss"}
"""What a search can minimize, in words."""


def objective_words(objective: str) -> str:
    """Return an objective in words."""
    return OBJECTIVES.get(objective, objective.replace("_", " "))

"""What is compared: columns of trials and curves, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from ahf_cli.experiment.records import CHANCE_ACCURACY, CHANCE_LOSS


@dataclass(frozen=True)
class Metric:
    """A column of trials and curves: its label, which way is better, and its value for guessing."""

    column: str
    label: str
    better: Literal["lower", "higher"]
    chance: float
    unit: str
    short: str
    """of the unit"""
    top: float = 1.0
    """largest possible value; the least is 0"""


METRICS = {
    m.column: m
    for m in (
        Metric(
            "train_loss", "training loss", "lower", CHANCE_LOSS, "mean cross-entropy, nats", "nats", math.inf
        ),
        Metric("test_accuracy", "test accuracy", "higher", CHANCE_ACCURACY, "fraction correct", "fraction"),
    )
}


def recipe_names(trials: pd.DataFrame, planned: Mapping[str, int]) -> list[str]:
    """Names of the planned recipes, then of others that have trials."""
    return list(dict.fromkeys([*planned, *trials["recipe"]]))


def at_chance(trials: pd.DataFrame, metric: Metric) -> pd.Series[float]:
    """Return final values with each diverged trial at chance; NaN for failed ones."""
    values = trials[metric.column].astype(float)
    return values.where(trials["status"] == "ok", metric.chance).where(trials["status"] != "failed")


def ranked(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the finished trials, with min(objective, ln 10), what the sampler was told, in `value`."""
    return trials[trials["status"] != "failed"].astype({"value": float})


OBJECTIVES = {"train_loss": "training loss", "validation_loss": "validation loss"}
"""What a search can minimize, in words."""


def objective_words(objective: str) -> str:
    """Return an objective in words."""
    return OBJECTIVES.get(objective, objective.replace("_", " "))

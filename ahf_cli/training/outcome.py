"""The outcome of a trial: trained, stood still, did not train, diverged, or failed."""

from __future__ import annotations

import math
from typing import Literal

from ahf_cli.tasks.metrics import Column
from ahf_cli.training.records import Status, TrialResult

Outcome = Literal["trained", "stood still", "did not train", "diverged", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("trained", "stood still", "did not train", "diverged")
"""Outcomes of a finished trial; a failed one has none, and its slot runs again."""
UNKNOWN = -1
"""`still_from` of records of older versions"""


def outcome_of(status: Status, fell: bool, still_from: int, value: float, metric: Column) -> Outcome:
    """Return the outcome of a trial.

    *trained*: finite to the end, and the headline is past its bar.  Without a bar, the training loss is at
    most 95 % of its first value.  *stood still*: not trained, and from some step on every update u has
    ‖u‖ ≤ ε ‖θ‖, below rounding; values that are not finite later change nothing.  *did not train*: finite
    and short of the bar.  *diverged*: a value is not finite.

    Args:
        status: of the record.
        fell: whether the training loss fell by 5 %.
        still_from: first step of the last unbroken run of updates below rounding; 0 without one.
        value: final value of the headline.
        metric: the headline.
    """
    if status == "failed":
        return "failed"
    reached = fell if metric.bar is None else metric.reaches(value)
    if status == "ok" and reached:
        return "trained"
    if still_from > 0:
        return "stood still"
    return "did not train" if status == "ok" else "diverged"


def outcome(result: TrialResult, metric: Column) -> Outcome:
    """Return the outcome of a record; one of an older version stands still nowhere."""
    value = result.measured.get(metric.column, math.nan)
    return outcome_of(result.status, not result.stalled, result.still_from, value, metric)

"""The order of a search's trials, from the best to the worst."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ahf_cli.training.records import TrialResult


def own_value(result: TrialResult) -> float:
    """Return a trial's final objective, without the cap of `value`; NaN where it has none."""
    return result.measured.get(result.objective, math.nan) if result.status == "ok" else math.nan


def best_trial(results: Iterable[TrialResult]) -> TrialResult | None:
    """Return the trial with the least value, of those that did not diverge; None where all have."""
    ok = [result for result in results if result.status == "ok"]
    return min(ok, key=lambda r: rank(r.value, own_value(r), r.slot), default=None)


def rank(value: float, own: float, slot: int) -> tuple[float, float, int]:
    """Return the key that sorts trials: of equal values the least own one, of equals the first slot."""
    return value, own if math.isfinite(own) else math.inf, slot

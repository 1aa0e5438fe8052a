"""The best configuration of each recipe, trained again with new seeds: what its value is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ahf_cli.study.best import rank

if TYPE_CHECKING:
    from ahf_cli.search.plan import SearchPlan
    from ahf_cli.search.slots import Slots
    from ahf_cli.training.records import TrialResult

OWN_VALUE = "own_value"
"""Where the index says a trial's own value, which may be above the capped one that a sampler was told."""
SEARCH_SLOT = "search_slot"
"""Where a re-run says, among the extra numbers of its result, which trial of the search it repeats."""


@dataclass(frozen=True)
class Best:
    """The trial of a search that has the lowest value, of those that did not diverge."""

    slot: int
    params: Mapping[str, float]
    """free hyperparameters"""


def best_of(slots: Slots) -> Best | None:
    """Return the best complete trial; None where all have diverged."""
    complete = slots.complete()
    ok = {slot: t for slot, t in complete.items() if t.user_attrs.get("status") != "diverged"}
    if not ok:
        return None
    # Only a capped value has its own one beside it in the index.
    values = {slot: float(t.value or 0.0) for slot, t in ok.items()}
    own = {slot: float(ok[slot].user_attrs.get(OWN_VALUE, value)) for slot, value in values.items()}
    keys = [rank(value, own[slot], slot) for slot, value in values.items()]
    slot = min(keys)[2]
    return Best(slot, dict(complete[slot].params))


def seed_of(study_seed: int, replicate: int) -> int:
    """Return the training seed of a re-run: the same for all recipes, and none of them that of the search."""
    return (study_seed + 1 + replicate) % 2**63


def repeats(result: TrialResult, best: Best) -> bool:
    """Tell whether a re-run is one of this trial."""
    same = all(result.params.get(name) == value for name, value in best.params.items())
    return same and result.extra.get(SEARCH_SLOT) == best.slot


def rerun_plan(plan: SearchPlan, best: Mapping[str, Best], count: int, prefix: str) -> SearchPlan:
    """Return the plan that trains each best trial again, `count` times with a seed of its own."""
    return replace(
        plan,
        recipes={name: plan.recipes[name] for name in best},
        trials=count,
        known=count,
        batch=1,  # rows of one batch share weights and batch order, and here these differ
        prefix=prefix,
        about={name: {**said, "trials": count} for name, said in plan.about.items()},
        again=best,
    )

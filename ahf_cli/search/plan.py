"""What a search does, and to whom it tells what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ahf_cli.recipes.hyperparameters import Range
from ahf_cli.recipes.recipe import Recipe
from ahf_cli.search.reruns import Best, seed_of
from ahf_cli.training.records import Progress, TrialResult


@dataclass(frozen=True)
class SearchPlan:
    """What a search does: recipes with their spaces, and how many trials of each."""

    recipes: Mapping[str, Recipe]
    spaces: Mapping[str, Mapping[str, Range]]
    trials: int
    seed: int
    sampler: str
    workers: int
    batch: int = 1
    """trials side by side in one job"""
    stream: int = 0
    """sampler's stream: 0 for a search, 1 for a pre-run"""
    prefix: str = ""
    """what the names of Optuna studies begin with, so that one storage can hold several of ours"""
    about: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """what other processes must know to join, by recipe: kept with each Optuna study of a shared storage"""
    guest: bool = False
    """joined from elsewhere: does not fetch what others have done, nor try again what was given up"""
    again: Mapping[str, Best] = field(default_factory=dict)
    """for re-runs: the trial that is repeated, by recipe; its slots are replicates with seeds of their own"""
    known: int = 0
    """slots that may be finished already, where these are more than `trials`"""

    cap: float | None = None
    """value of a trial that was given up: the loss of guessing, where there is one"""

    def index_name(self, recipe: str) -> str:
        """Return the name of a recipe's Optuna study; re-runs of another trial are another study."""
        repeated = f"@{self.again[recipe].slot:03d}" if self.again else ""
        return self.prefix + recipe + repeated

    def seed_of(self, slot: int) -> int:
        """Return the training seed of a slot."""
        return seed_of(self.seed, slot) if self.again else self.seed


@dataclass(frozen=True)
class Hooks:
    """What a search tells to whom it may concern."""

    on_result: Callable[[TrialResult], None] = lambda result: None
    on_progress: Callable[[Progress], None] = lambda progress: None
    on_remark: Callable[[str], None] = lambda line: None
    """hears of what went wrong and is tried again, in one line"""
    should_stop: Callable[[], bool] = lambda: False


HOOKS = Hooks()

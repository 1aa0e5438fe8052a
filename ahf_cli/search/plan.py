"""The plan of a search and of its re-runs, and the receivers of its progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ahf_cli.recipes.hyperparameters import Range
from ahf_cli.recipes.recipe import Recipe
from ahf_cli.training.records import Progress, Start, TrialResult

OWN_VALUE = "own_value"
"""Attribute of a trial in the index: its own value, if that exceeds the capped value given to the sampler."""
NEW_SEEDS = 10**6
"""First seed of the re-runs, counted from the study's: no draw of the search has it."""
DRAW, REPEAT = "draw", "repeat"
"""Draw and repeat of a crossed trial, among the extra numbers of its result; its column is its seed."""
SEARCH_SLOT = "search_slot"
"""Where a re-run says, among the extra numbers of its result, which trial of the search it repeats."""


@dataclass(frozen=True)
class Best:
    """The trial of a search that has the lowest value, of those that did not diverge."""

    slot: int
    params: Mapping[str, float]
    """free hyperparameters"""


@dataclass(frozen=True)
class SearchPlan:
    """Plan of a search: recipes with their spaces, and the number of trials of each."""

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
    """first part of the names of Optuna studies, so that one storage can hold several searches"""
    about: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """data that other processes need to join, by recipe; each Optuna study of a shared storage keeps it"""
    guest: bool = False
    """joined from elsewhere: it fetches no results of others and repeats no trial that was given up"""
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

    seeds: str | int = "one"
    """training seeds: `one`, one per `draw` or for its `weights` alone, or the number for each draw"""
    repeats: int = 1
    """runs of each draw and seed"""

    def draw_of(self, slot: int) -> int:
        """Return the number of a slot's draw of hyperparameters."""
        return slot // (self.seeds * self.repeats) if isinstance(self.seeds, int) else slot

    def start_of(self, slot: int) -> Start:
        """Return the seed of a slot, the same for all recipes."""
        if self.again:
            first = 1 if self.seeds == "one" else NEW_SEEDS
            return Start((self.seed + first + slot) % 2**63)
        if isinstance(self.seeds, int):
            column, repeat = divmod(slot, self.repeats)
            return Start((self.seed + column % self.seeds) % 2**63, repeat)
        if self.seeds == "one":
            return Start(self.seed)
        return Start((self.seed + slot) % 2**63, order=self.seed if self.seeds == "weights" else None)

    def extra_of(self, slot: int) -> dict[str, float]:
        """Return the numbers that a slot's result has besides, for crossed draws: draw and repeat."""
        if self.again or not isinstance(self.seeds, int):
            return {}
        return {DRAW: float(self.draw_of(slot)), REPEAT: float(self.start_of(slot).repeat)}


@dataclass(frozen=True)
class Hooks:
    """Callbacks of a search."""

    on_result: Callable[[TrialResult], None] = lambda result: None
    on_progress: Callable[[Progress], None] = lambda progress: None
    on_remark: Callable[[str], None] = lambda line: None
    """receives one line about each failure that is tried again"""
    should_stop: Callable[[], bool] = lambda: False


HOOKS = Hooks()


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
        prefix=prefix,
        about={name: {**said, "trials": count} for name, said in plan.about.items()},
        again=best,
    )


class Reporter(Protocol):
    """Receives remarks, and the trials of each stage as they run and end."""

    def say(self, line: str) -> None:
        """Take a remark of one line."""
        ...

    def stage(self, title: str, done: int, total: int) -> AbstractContextManager[Hooks]:
        """Return a context whose hooks are told of a stage's trials."""
        ...


class Silent:
    """A reporter that drops everything."""

    def say(self, line: str) -> None:
        """Drop a remark."""

    def stage(self, title: str, done: int, total: int) -> AbstractContextManager[Hooks]:
        """Return hooks that do nothing."""
        return nullcontext(Hooks())


SILENT = Silent()
ShouldStop = Callable[[], bool]
"""Asked after every step; a run that is to stop saves checkpoints and ends."""


def never() -> bool:
    """Return False: the run goes on to its end."""
    return False

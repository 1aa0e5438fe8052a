"""A trial function of a few milliseconds that imports no torch."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.recipes.recipe import search_range
from ahf_cli.search.pool import Job, Outcome, Report, ShouldStop, describe, is_infrastructure
from ahf_cli.study.trial_folder import TrialFolders
from ahf_cli.tasks.metrics import TEN_CLASSES
from ahf_cli.training.records import CurveRow, Progress, TrialResult

if TYPE_CHECKING:
    from ahf_cli.search.search import SearchPlan

NAN = math.nan
SPACES = {
    name: {key: found for key in RECIPES[name].free if (found := search_range(RECIPES[name], key))}
    for name in RECIPES
}


def plan(
    trials: int,
    workers: int = 1,
    names: tuple[str, ...] = ("hf", "adaptive_hf"),
    sampler: str = "tpe",
    **more: object,
) -> SearchPlan:
    """Return a search of built-in recipes over the paper's ranges."""
    from ahf_cli.search.search import SearchPlan

    recipes = {name: RECIPES[name] for name in names}
    return SearchPlan(recipes, SPACES, trials, 0, sampler, workers, **more)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Toy:
    """Prepares a worker process: a trial waits, checkpoints, and returns what its hyperparameters say."""

    records: TrialFolders
    seconds: float = 0.0
    steps: int = 1
    trouble: Path | None = None
    """a file whose first word a trial obeys once: exit, kill, disk or bug"""

    def __call__(self, report: Report, should_stop: ShouldStop) -> Callable[[Job], Outcome]:
        """Prepare a process."""

        def run(job: Job) -> Outcome:
            results: list[TrialResult] = []
            try:
                for slot in job.params:
                    for step in range(1, self.steps + 1):
                        time.sleep(self.seconds / self.steps)
                        report(Progress(job.recipe.name, slot, step, self.steps, 1.0))
                        self._meet_trouble()
                        if should_stop() and step < self.steps:
                            return Outcome(results, stopped=True)
                    result = toy_result(job, slot)
                    self.records.trial(job.recipe.name, slot).finish(result, toy_curve(result.value), [])
                    results.append(result)
            except Exception as error:
                return Outcome(results, False, describe(error), is_infrastructure(error))
            return Outcome(results)

        return run

    def _meet_trouble(self) -> None:
        if self.trouble is None:
            return
        mine = self.trouble.with_name(f"{self.trouble.name}-{os.getpid()}")
        try:
            self.trouble.rename(mine)  # of two processes that see it, one has it
        except FileNotFoundError:
            return
        word = mine.read_text()
        if word == "kill":
            os.kill(os.getpid(), 9)
        if word == "exit":
            os._exit(7)
        if word == "disk":
            raise OSError(28, "No space left on device", "curve.csv")
        raise ZeroDivisionError(word)


def toy_result(job: Job, slot: int) -> TrialResult:
    """Return a result that is a function of the hyperparameters."""
    params = job.recipe.complete(job.params[slot])
    value = min(2.3, abs(math.log(params["damping"] / 5)))
    return TrialResult(
        job.recipe.name, slot, "ok", 1, 1, value, "train_loss", params, 0,
        dict(zip(TEN_CLASSES.result_columns, (value, value, 0.5, value, 0.5), strict=True)), 0.0,
        attempts=job.attempts.get(slot, 1),
    )  # fmt: skip


def toy_curve(value: float) -> list[CurveRow]:
    """Return a curve of two rows."""
    columns = TEN_CLASSES.curve_columns
    cells = [(2.3 - s * (2.3 - value), 0.1, NAN, NAN, 2.3, 0.1) for s in (0, 1)]
    return [CurveRow(s, float(s), dict(zip(columns, cells[s], strict=True)), s, s, 0.0) for s in (0, 1)]

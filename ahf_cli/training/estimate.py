"""The duration of a search, estimated from a few timed steps of each recipe."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from ahf_cli.recipes.hyperparameters import Range, middle
from ahf_cli.recipes.recipe import Recipe
from ahf_cli.tasks.task import Task
from ahf_cli.training.evaluate import evaluate
from ahf_cli.training.records import StepRow
from ahf_cli.training.train import Plan, begin, train

WARM_UP, TIMED = 10, 15
"""Number of steps before the clock starts, and number of timed steps."""
SAMPLE = 5_000
"""Number of images of a timed evaluation."""


@dataclass(frozen=True)
class Slice:
    """The time of a few steps of one recipe, at the middle of its search space."""

    recipe: str
    params: Mapping[str, float]
    seconds_per_step: float
    cg_iterations: float
    """mean over the timed steps"""
    rows: tuple[StepRow, ...]
    """records of the steps, for estimates of file sizes"""


def time_slice(task: Task, recipe: Recipe, space: Mapping[str, Range], seed: int, trials: int = 1) -> Slice:
    """Train trials side by side for a few steps without evaluation, and time the later steps of one."""
    params = {name: middle(found) for name, found in space.items()}
    total = WARM_UP + TIMED
    plan = Plan(steps=total, eval_every=total + 1, seed=seed, eval_subset=task.batch_size)
    batch = begin(task, recipe, plan, dict.fromkeys(range(trials), params))
    times: list[float] = []
    train(task, batch, on_progress=lambda progress: times.append(batch.trials[0].seconds))
    rows = tuple(batch.trials[0].steps)
    first = min(WARM_UP, len(rows) - 1)  # a trial that diverges early has fewer steps
    spent = (times[-1] - times[first]) / max(1, len(rows) - first)
    iterations = [row.cg_iterations for row in rows[first:]]
    return Slice(recipe.name, params, spent, sum(iterations) / max(1, len(iterations)), rows)


def time_evaluation(task: Task, images: int, seed: int, trials: int = 1) -> float:
    """Return the seconds of a trial's evaluation on `images` images, scaled from `SAMPLE` images."""
    theta = task.initial(seed).expand(trials, -1)
    count = min(SAMPLE, len(task.split.train))
    evaluate(task, theta, task.split.train, count)
    before = time.perf_counter()
    evaluate(task, theta, task.split.train, count)
    return (time.perf_counter() - before) * images / count / trials


def images_per_evaluation(task: Task, eval_subset: int | None) -> int:
    """Return the number of images in one evaluation of a trial."""
    training = min(eval_subset or len(task.split.train), len(task.split.train))
    held_out = 0 if task.split.validation is None else len(task.split.validation)
    return training + held_out + len(task.split.test)


def evaluations(steps: int, every: int) -> int:
    """Return the number of evaluations of a trial: at step 0, at every multiple, and at the last step."""
    return 1 + steps // every + (steps % every != 0)

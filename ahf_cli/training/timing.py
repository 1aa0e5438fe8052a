"""Times of a gradient, a loss, curvature products and whole steps, measured in turn in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, field, replace
from functools import partial

import numpy as np
import torch

from ahf_cli.optim import Optimizer, compose, gauss_newton, hessian
from ahf_cli.optim.operators import Curvature
from ahf_cli.optim.precision import full_precision
from ahf_cli.recipes.hyperparameters import Range, middle
from ahf_cli.recipes.recipe import Recipe
from ahf_cli.recipes.structure import Whole
from ahf_cli.tasks.data import LabelledImages
from ahf_cli.tasks.task import CURVATURE_STREAM, GRADIENT_STREAM, Task
from ahf_cli.training.interleave import Budget, Clock, interleave
from ahf_cli.training.records import Progress
from ahf_cli.training.train import Plan, StoppedError, begin, train

ROUNDS, SECONDS = 15, 6.0
"""Rounds; fewer where so many CPU seconds are spent."""
WARM_UP, STEPS = 3, 1
"""Steps of a recipe before the first round, and in each round."""
CLASS_STEPS = 10
"""Steps in a round of a class of another package, which may renew matrices as seldom."""
REPEATS = 3
"""Repeats of each operation in a round."""

Samples = Mapping[str, Sequence[float]]
"""Seconds of each case, round by round."""


def clock_of(device: torch.device) -> Clock:
    """Return a device's clock: CPU time of this process, or on a GPU the time when its queue is empty."""
    if device.type == "cpu":
        return time.process_time

    def synchronized() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronized


@dataclass(frozen=True)
class Counts:
    """Steps, and the operations that their records count."""

    steps: float
    gradients: float
    products: float
    losses: float


@dataclass(frozen=True)
class CurvatureUse:
    """The use of curvature in a recipe, and the mini-batches of a second batch (0: the same)."""

    curvature: Curvature | None
    """of the products of a linear system; None without products"""
    batches: int = 0
    renewal: int = 1
    """steps between two renewals of a preconditioner with a memory, whose work is set-up"""
    factored: bool = False
    """whether its products stand for a factorization: their unit is that of the measured steps"""


@dataclass(frozen=True)
class RecipeTiming:
    """Times of a recipe, in seconds of one step, and in units of one gradient."""

    seconds: float
    """measured time of a step"""
    overhead: float
    """part of it that is no counted operation"""
    product: float
    """units of its curvature product"""
    setup: float
    """units of the set-up of its curvature, once a step; 0 without a linear system"""
    counts: Counts
    """of the timed steps"""


@dataclass(frozen=True)
class Timing:
    """Times of one study on one machine."""

    gradient: float
    """seconds"""
    loss: float
    """units of one gradient, as the products"""
    products: Mapping[str, float]
    recipes: Mapping[str, RecipeTiming]
    rounds: int


def measure(
    task: Task,
    recipes: Mapping[str, tuple[Recipe, Mapping[str, Range]]],
    seed: int = 0,
    trials: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
) -> Timing | None:
    """Time the operations of a task, and a few steps of each recipe at the middle of its search space.

    Args:
        task: data, model, loss, batch size and device.
        recipes: recipe and search space by name.
        seed: of weights and batches.
        trials: K, side by side; all times are of one of them.
        should_stop: asked between rounds; true ends the measurement without a result.
    """
    clock = clock_of(task.device)
    settings = {name: setting_of(recipe) for name, (recipe, _) in recipes.items()}
    with full_precision():
        systems = [s for s in settings.values() if s and s.curvature]
        operations, counted = _operations(task, systems, seed, trials)
        cases: dict[str, Callable[[], float]] = {
            name: _timed(action, clock, trials) for name, action in operations.items()
        }
        runs = {
            name: Run(_small(task), recipe, {k: middle(r) for k, r in space.items()}, seed, trials, clock)
            for name, (recipe, space) in recipes.items()
        }
        cases |= {f"steps {name}": run for name, run in runs.items()}
        samples = interleave(cases, Budget(ROUNDS, SECONDS), time.process_time, should_stop)
    if samples is None:
        return None
    counts = {name: run.counts[1:] for name, run in runs.items()}
    return timing(samples, settings, counted, counts)


def timing(
    samples: Samples,
    settings: Mapping[str, CurvatureUse | None],
    gradients: Mapping[str, int],
    counts: Mapping[str, Sequence[Counts]],
) -> Timing:
    """Return units and overheads, medians over rounds of ratios to the gradient of the same round.

    Args:
        samples: of the cases `gradient`, `loss`, `product` and `start` of each setting, `steps` of a recipe.
        settings: linear system by recipe; None without one.
        gradients: number of gradients in the case `start` of a setting.
        counts: of the steps of each recipe, by round.
    """
    rounds = {name: np.asarray(values, dtype=float) for name, values in samples.items()}
    unit = {name: values / rounds["gradient"] for name, values in rounds.items()}
    second = float(np.median(rounds["gradient"]))
    loss = float(np.median(unit["loss"]))
    products = {name: float(np.median(unit[f"product {name}"])) for name in PRODUCTS}
    found = {}
    for name, setting in settings.items():
        setup, product = 0.0, products["hessian"]  # such as the one product of AdaHessian
        if setting is not None and setting.curvature is not None:
            label, one = _label(setting), unit[f"product {_name(setting.curvature)}"]
            first = unit[f"start {label}"] - gradients[label] - max(1, setting.batches) * one
            setup, product = max(0.0, float(np.median(first))), float(np.median(one))
        own = np.array([astuple(c) for c in counts[name]], dtype=float)
        taken = own[:, 0] > 0
        if not taken.any():  # its run diverges at once
            continue
        steps, gradient, many, losses = own[taken].T
        each = unit[f"steps {name}"][taken] / steps
        factored = setting is not None and setting.factored
        if factored:
            product = max(0.0, float(np.median((each * steps - gradient - loss * losses) / many)))
        rest = each - (gradient + product * many + loss * losses) / steps - setup
        if setting is None or (setting.curvature is None and not factored):
            rest = rest - loss  # of the record alone: a plain loop does not evaluate it
        left = max(0.0, float(np.median(rest)))
        if setting is not None and setting.renewal > 1:  # statistics and inverses are work of the method
            setup, left = setup + left, 0.0
        found[name] = RecipeTiming(
            second * float(np.median(each)), second * left, product, setup,
            Counts(float(steps.sum()), float(gradient.sum()), float(many.sum()), float(losses.sum())),
        )  # fmt: skip
    return Timing(second, loss, products, found, len(rounds["gradient"]))


PRODUCTS: dict[str, Curvature] = {"hessian": hessian, "ggn": gauss_newton}
"""Curvatures whose products are timed in any case."""


def setting_of(recipe: Recipe) -> CurvatureUse | None:
    """Return the linear system of a recipe; None without one."""
    optimizer = compose(recipe.structure)
    if recipe.structure.squares:
        return CurvatureUse(None, factored=True)
    if not isinstance(optimizer, Optimizer):
        return None
    # The products of CG are those with the whole operator; its second forward pass is set-up.
    one = torch.ones(1)
    damped = optimizer.damping_matrix(one, dict.fromkeys(recipe.hyperparameters, one))
    return CurvatureUse(
        None if optimizer.recorded_loss else damped or optimizer.curvature,
        optimizer.curvature_batches if optimizer.independent_batch else 0, optimizer.renewal,
    )  # fmt: skip


@dataclass
class Run:
    """Trials of a recipe that advance by a few steps at each call, which returns the seconds of one trial."""

    task: Task
    recipe: Recipe
    params: Mapping[str, float]
    seed: int
    trials: int
    clock: Clock
    counts: list[Counts] = field(default_factory=list)
    """of each call"""

    def __post_init__(self) -> None:
        setting = setting_of(self.recipe)
        # A call spans whole cycles of renewals: a median over single steps would drop the renewals.
        structure = self.recipe.structure
        own = CLASS_STEPS if isinstance(structure, Whole) and structure.is_class else 1
        self._steps = STEPS * (own if setting is None else setting.renewal)
        self._begin()

    def _begin(self) -> None:
        plan = Plan(10**9, 10**9, self.seed, eval_subset=self.task.batch_size)
        self.batch = begin(self.task, self.recipe, plan, dict.fromkeys(range(self.trials), self.params))
        self._advance(WARM_UP)

    def __call__(self) -> float:
        """Take the next steps; a run that has diverged starts again, and its first steps do not count."""
        if not bool(self.batch.state.active.any()):
            self._begin()
        trial = self.batch.trials[0]
        before = (self.batch.step, trial.gradients, trial.products, trial.losses)
        seconds = self._advance(self._steps) / self.trials
        after = (self.batch.step, trial.gradients, trial.products, trial.losses)
        self.counts.append(Counts(*(new - old for new, old in zip(after, before, strict=True))))
        return seconds

    def _advance(self, steps: int) -> float:
        """Return the time of some steps, without evaluation and checkpoints."""
        target = self.batch.step + steps
        start = end = self.clock()

        def heard(progress: Progress) -> None:
            nonlocal end
            end = self.clock()

        with suppress(StoppedError):
            train(
                self.task, self.batch, on_progress=heard, should_stop=lambda: self.batch.step >= target
            )  # fmt: skip
        return end - start


def _operations(
    task: Task, settings: Sequence[CurvatureUse], seed: int, trials: int
) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """Return the operations to time, and the number of gradients in the case `start` of each setting."""
    seeds, theta = [seed] * trials, task.initial(seed).expand(trials, -1).clone()
    h = task.objective(seeds, GRADIENT_STREAM, 0)
    vector = h.evaluate(theta).gradient.clone()
    actions: dict[str, Callable[[], object]] = {
        "gradient": lambda: h.evaluate(theta).gradient,
        "loss": lambda: h.value(theta),
    }
    for curvature in [*PRODUCTS.values(), *(s.curvature for s in settings if s.curvature)]:
        actions[f"product {_name(curvature)}"] = partial(h.evaluate(theta).operator(curvature), vector)

    def start(setting: CurvatureUse) -> int:
        """Do what a step does up to its first product; return the number of gradients in it."""
        here = there = h.evaluate(theta)
        if setting.batches:
            second = task.objective(seeds, CURVATURE_STREAM, 0, setting.batches)
            there = second.evaluate(theta)
        assert setting.curvature is not None
        operator = there.operator(setting.curvature)
        operator(here.gradient)
        return here.gradient_count + (0 if there is here else there.gradient_count)

    starts = {_label(setting): partial(start, setting) for setting in settings}
    actions |= {f"start {label}": action for label, action in starts.items()}
    return actions, {label: action() for label, action in starts.items()}


def _name(curvature: Curvature) -> str:
    return next((name for name, known in PRODUCTS.items() if known is curvature), repr(curvature))


def _label(setting: CurvatureUse) -> str:
    assert setting.curvature is not None
    return f"{_name(setting.curvature)} {setting.batches}"


def _timed(action: Callable[[], object], clock: Clock, trials: int) -> Callable[[], float]:
    """Return a function that runs the action and returns its seconds for one trial."""

    def timed() -> float:
        before = clock()
        for _ in range(REPEATS):
            action()
        return (clock() - before) / REPEATS / trials

    return timed


def _small(task: Task) -> Task:
    """Return the task with so few examples to evaluate on that an evaluation takes no time."""
    test = task.split.test
    few = LabelledImages(test.images[: task.batch_size], test.labels[: task.batch_size])
    return replace(task, split=replace(task.split, validation=None, test=few))

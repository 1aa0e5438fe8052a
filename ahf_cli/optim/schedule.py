"""Schedules of the step size, warm-up and averages of the iterates, on top of every optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import ahf_cli.optim.rows as rows
from ahf_cli.optim.any_optimizer import AnyOptimizer
from ahf_cli.optim.moments import Values
from ahf_cli.optim.objective import Objective
from ahf_cli.optim.state import AVERAGE, State, StepInfo

Shape = Callable[[Tensor, Tensor, Values], Tensor]
"""(k, n, hyperparameters) ↦ the factor of α at step k = 0, 1, … of the n steps after the warm-up; (K,)."""


def constant(done: Tensor, steps: Tensor, values: Values) -> Tensor:
    """Return 1."""
    return torch.ones_like(done)


def linear(done: Tensor, steps: Tensor, values: Values) -> Tensor:
    """Return 1 − k/n: a fall to 0 along a line, as `torch.optim.lr_scheduler.LinearLR`."""
    return 1 - done / steps


def cosine(done: Tensor, steps: Tensor, values: Values) -> Tensor:
    """Return (1 + cos πk/n)/2, as `CosineAnnealingLR` (Loshchilov and Hutter 2017)."""
    return (1 + torch.cos(math.pi * done / steps)) / 2


def hyperbolic(done: Tensor, steps: Tensor, values: Values) -> Tensor:
    """Return 1/(1 + k/τ) with τ = `halving`, for a run of any length."""
    return 1 / (1 + done / values["halving"])


def at_once(values: Values, steps: int) -> Tensor | None:
    """Return None: no steps of warm-up."""


def warm_up(values: Values, steps: int) -> Tensor:
    """Return W = w T rounded, the number of steps in which the factor rises as 1/W, 2/W, …, 1; (K,)."""
    return torch.round(values["warmup_share"].double() * steps)


@dataclass(frozen=True)
class Schedule:
    """The factor s_t of the step size α in a run of T steps: a linear warm-up, then a shape."""

    shape: Shape
    warmup: Callable[[Values, int], Tensor | None]
    steps: int | None = None
    """T; None for a run without an end, in which only `hyperbolic` acts"""

    def __call__(self, step: Tensor, values: Values) -> Tensor | None:
        """Return s_t at t = 1, 2, …, (K,); None for 1.

        In float64, as schedulers compute it.
        """
        if self.shape is constant and self.warmup is at_once:
            return None
        steps = 10**12 if self.steps is None else self.steps  # practically endless
        done = (step - 1).double()
        warm = self.warmup(values, steps)
        if warm is None:
            return self.shape(done, torch.full_like(done, steps), values)
        later = self.shape((done - warm).clamp_min(0), (steps - warm).clamp_min(1), values)
        return torch.where(done < warm, (done + 1) / warm, later)


@dataclass(frozen=True)
class _Around:
    """An optimizer around another one."""

    inner: AnyOptimizer

    @property
    def curvature_batches(self) -> int:
        """Those of the inner optimizer."""
        return self.inner.curvature_batches

    @property
    def independent_batch(self) -> bool:
        """As the inner optimizer has it."""
        return self.inner.independent_batch

    def init(self, parameters: Tensor, hyperparameters: Mapping[str, Tensor | float]) -> State:
        """Make the state of K trials before their first step."""
        return self.inner.init(parameters, hyperparameters)


@dataclass(frozen=True)
class Scheduled(_Around):
    """An optimizer whose learning rate `lr` is s_t times its hyperparameter at each step."""

    schedule: Schedule

    def step(
        self, state: State, objective: Objective, curvature_objective: Objective | None = None
    ) -> tuple[State, StepInfo]:
        """Take one step of the inner optimizer with the scaled learning rate."""
        values = state.hyperparameters
        factor = self.schedule(state.step + 1, values)
        if factor is None:
            return self.inner.step(state, objective, curvature_objective)
        scaled = {**values, "lr": (values["lr"].double() * factor).to(values["lr"])}
        after, info = self.inner.step(
            replace(state, hyperparameters=scaled), objective, curvature_objective
        )  # fmt: skip
        return replace(after, hyperparameters=values), info


@dataclass(frozen=True)
class Averaged(_Around):
    """An optimizer that is evaluated at a moving average of its iterates, which its steps do not see.

    θ̄ ← d_t θ̄ + (1 − d_t) θ with d_t = min(d, t/(9 + t)) after step t = 2, 3, …, and θ̄ = θ after step 1.
    """

    def init(self, parameters: Tensor, hyperparameters: Mapping[str, Tensor | float]) -> State:
        """Make the state of K trials before their first step, with θ̄ = θ₀."""
        state = self.inner.init(parameters, hyperparameters)
        return replace(state, moments={**state.moments, AVERAGE: parameters.clone()})

    def step(
        self, state: State, objective: Objective, curvature_objective: Objective | None = None
    ) -> tuple[State, StepInfo]:
        """Take one step of the inner optimizer, and move the average."""
        own = {name: value for name, value in state.moments.items() if name != AVERAGE}
        after, info = self.inner.step(replace(state, moments=own), objective, curvature_objective)
        t = after.step.double()
        decay = torch.minimum(after.hyperparameters["average_decay"].double(), t / (9 + t))
        weight = torch.where(t <= 1, 1.0, 1 - decay)
        before, theta = state.moments[AVERAGE], after.parameters
        mean = torch.lerp(before, theta, rows.expand(weight).to(theta))
        moved = rows.where(after.active, mean, before)
        return replace(after, moments={**after.moments, AVERAGE: moved}), info

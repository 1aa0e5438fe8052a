"""Algorithm 1: the one place that knows the order of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from ahf_cli.optim import rows
from ahf_cli.optim.backtracking import armijo, backtrack
from ahf_cli.optim.cg import CGResult
from ahf_cli.optim.curvature import CurvatureOperator, HessianOperator, QuadraticModel
from ahf_cli.optim.damping import Change, DampingRule, ReductionRatio
from ahf_cli.optim.descent import LinearSolver, LinearSystem
from ahf_cli.optim.objective import Evaluation, Objective
from ahf_cli.optim.preconditioner import Preconditioner
from ahf_cli.optim.regularized import Regularized
from ahf_cli.optim.step_size import StepSize, conjugate_smoothness, eq3, shortening
from ahf_cli.optim.transform import Moments, Transform, Values
from ahf_cli.recipes.structure import Clipping, Norm


@dataclass(frozen=True)
class State:
    """All that a step reads and writes, for K trials of P parameters; nothing is kept elsewhere."""

    parameters: Tensor  # θ, (K, P)
    direction: Tensor  # δ of the last step, (K, P); 0 at first
    damping: Tensor  # λ, (K,)
    step: Tensor  # t, steps taken, (K,) int64
    diverged_at: Tensor  # the step that was not finite, (K,) int64; 0 while there is none
    moments: Moments  # by name, (K, P)
    hyperparameters: Values  # by name, (K,)

    @property
    def active(self) -> Tensor:
        """Rows that still take steps, (K,) bool."""
        return self.diverged_at == 0

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain dictionaries of tensors; `State(**state_dict)` continues bitwise."""
        return dict(vars(self))


@dataclass(frozen=True)
class StepInfo:
    """What one step did, row by row; meaningless in rows that were not active before it."""

    loss: Tensor  # h(θ) on the gradient batch, (K,)
    loss_after: Tensor  # h(θ + u) on the same batch, (K,)
    direction: Tensor  # δ, (K, P)
    update: Tensor  # u, (K, P)
    direction_l2: Tensor  # (K,), as all that follow
    direction_l1: Tensor
    direction_sum_l2: Tensor
    update_l2: Tensor
    step_size: Tensor  # α as used
    eq3_step_size: Tensor  # Eq. 3 before clipping, NaN where its hyperparameters are absent
    damping: Tensor  # λ of this step's system
    damping_next: Tensor
    reduction_ratio: Tensor  # ρ
    model_value: Tensor  # q(δ)
    cg_iterations: Tensor  # int64
    stop: Tensor  # `Stop` codes, int64
    smoothness_gradient: Tensor  # L̂ with g = ∇h
    smoothness_direction: Tensor  # L̂ with g = −δ
    products: Tensor  # curvature products of this step, int64
    gradients: int  # gradient evaluations of this step, equal in all rows
    active: Tensor  # rows that took part, bool
    finite: Tensor  # rows whose δ, u and new loss are finite, bool


class AnyOptimizer(Protocol):
    """Whatever steps the rows of a `State`: Hessian-free optimization or not."""

    @property
    def curvature_batches(self) -> int:
        """How many mini-batches the curvature's own batch is to have."""
        ...

    @property
    def independent_batch(self) -> bool:
        """Whether it takes the curvature on a second batch."""
        ...

    def init(self, parameters: Tensor, hyperparameters: Mapping[str, Tensor | float]) -> State:
        """Make the state of K trials before their first step."""
        ...

    def step(
        self, state: State, objective: Objective, curvature_objective: Objective | None = None
    ) -> tuple[State, StepInfo]:
        """Take one step in every active row."""
        ...


def begin(parameters: Tensor, hyperparameters: Mapping[str, Tensor | float], moments: Moments) -> State:
    """Make the state of K trials before their first step.

    Args:
        parameters: θ₀, (K, P).
        hyperparameters: by name, one number for all trials or (K,) of them; `damping` is λ₀.
        moments: by name, (K, P).
    """
    count = parameters.shape[0]
    values = {
        name: torch.as_tensor(value, dtype=parameters.dtype, device=parameters.device).expand(count).clone()
        for name, value in hyperparameters.items()
    }
    zeros = torch.zeros(count, dtype=torch.int64, device=parameters.device)
    damping = values["damping"].clone() if "damping" in values else parameters.new_zeros(count)
    return State(parameters, torch.zeros_like(parameters), damping, zeros, zeros.clone(), moments, values)


def finish(
    before: State, parameters: Tensor, direction: Tensor, damping: Tensor, moments: Moments, info: StepInfo
) -> tuple[State, StepInfo]:
    """Return the state after a step, in rows that are not finite the one before it, and the record."""
    t = before.step + 1
    moved = State(parameters, direction, damping, t, before.diverged_at, moments, before.hyperparameters)
    return _freeze(before, moved, info.finite), info


@dataclass(frozen=True)
class Solved:
    """What the first half of a step finds: g, δ, and the model around it."""

    objective: Objective  # h, with weight decay where that belongs to it
    here: Evaluation  # h at θ on the gradient batch
    cg: CGResult  # δ and its residual, with what CG said
    warm_start: Tensor  # where the next solve begins, (K, P)
    model: QuadraticModel
    gradients: int  # gradient evaluations, equal in all rows


@dataclass(frozen=True)
class Optimizer:
    """A composition of parts; `compose` makes one from a recipe's structure."""

    curvature: Callable[[Evaluation], CurvatureOperator]
    independent_batch: bool
    """whether B is taken on a second batch"""
    solver: LinearSolver
    transform: Transform
    norm: Norm
    step_size: StepSize
    reduction_ratio: ReductionRatio
    damping_rule: DampingRule
    preconditioner: Preconditioner | None = None
    backtracking: bool = False
    """whether the step may be an earlier iterate of CG"""
    line_search: bool = False
    """whether α is what a line search leaves of it"""
    regularized: bool = False
    """whether weight decay belongs to h"""
    clipping: Clipping = "none"
    curvature_batches: int = 1
    """mini-batches that the curvature's own batch is to have"""

    def init(self, parameters: Tensor, hyperparameters: Mapping[str, Tensor | float]) -> State:
        """Make the state of K trials before their first step; see `begin`."""
        return begin(parameters, hyperparameters, self.transform.init(parameters))

    def step(
        self, state: State, objective: Objective, curvature_objective: Objective | None = None
    ) -> tuple[State, StepInfo]:
        """Take one step of Algorithm 1 in every active row.

        Args:
            state: before the step.
            objective: h on the gradient batch S′.
            curvature_objective: h on the curvature batch S″; needed if and only if `independent_batch`.
        """
        theta, values, t = state.parameters, state.hyperparameters, state.step + 1
        # δ from (B + λI) δ = −g, and the undamped model q.
        solved = self.solve(state, objective, curvature_objective)
        objective, here, model = solved.objective, solved.here, solved.model
        gradient, direction = here.gradient, solved.cg.solution
        # α and the moments give the update u.
        norms = here.layout.norms(direction)
        alpha = self.step_size(norms[self.norm], values, t)
        transformed, moments = self.transform(direction, state.moments, values, t)
        alpha, update = self._clipped(alpha, rows.expand(alpha) * transformed, norms["l2"], values)
        # λ from the reduction ratio ρ.
        wanted = alpha
        alpha, update, loss_after = self._searched(state, solved, wanted, update)
        ratio, extra_products = self.reduction_ratio(
            Change(
                loss=here.loss,
                loss_after=loss_after,
                loss_at_direction=lambda: objective.value(theta + direction),
                model=model,
                update=update,
                scale=alpha if self.transform.is_identity else None,
                refused=(alpha == 0) & (wanted != 0),
            )
        )
        damping = self.damping_rule(state.damping, ratio)

        finite = rows.finite(direction) & rows.finite(update) & rows.finite(loss_after)
        smoothness = partial(conjugate_smoothness, here.loss, loss_after, update=update)
        info = StepInfo(
            loss=here.loss,
            loss_after=loss_after,
            direction=direction,
            update=update,
            direction_l2=norms["l2"],
            direction_l1=norms["l1"],
            direction_sum_l2=norms["sum_l2"],
            update_l2=rows.l2(update),
            step_size=alpha,
            eq3_step_size=self._eq3(norms[self.norm], values, t),
            damping=state.damping,
            damping_next=damping,
            reduction_ratio=ratio,
            model_value=model.along(1.0),
            cg_iterations=solved.cg.iterations,
            stop=solved.cg.stop,
            smoothness_gradient=smoothness(rows.dot(gradient, update)),
            smoothness_direction=smoothness(-rows.dot(direction, update)),
            products=solved.cg.products + extra_products,
            gradients=solved.gradients,
            active=state.active,
            finite=finite,
        )
        return finish(state, theta + update, solved.warm_start, damping, moments, info)

    def solve(
        self, state: State, objective: Objective, curvature_objective: Objective | None = None
    ) -> Solved:
        """Find δ from (B + λI) δ = −g in every active row; the arguments are those of `step`."""
        theta = state.parameters
        if self.regularized:
            decay = state.hyperparameters["weight_decay"]
            objective = Regularized(objective, decay)
            if curvature_objective is not None:
                curvature_objective = Regularized(curvature_objective, decay)
        here = objective.evaluate(theta)
        there = self._curvature_evaluation(here, theta, curvature_objective)
        operator = self.curvature(there)
        operator.prepare()
        gradient = here.gradient
        scaling = self.preconditioner(here, state.damping) if self.preconditioner else None
        found = self.solver(
            LinearSystem(operator, gradient, state.damping, state.direction, state.active, scaling)
        )
        chosen = backtrack(found, lambda s: objective.value(theta + s)) if self.backtracking else found
        model = QuadraticModel(operator, gradient, chosen.solution, chosen.residual, state.damping)
        gradients = 2 if there is not here and self.curvature is HessianOperator else 1
        return Solved(objective, here, chosen, found.solution, model, gradients)

    def _clipped(
        self, alpha: Tensor, update: Tensor, direction_l2: Tensor, values: Values
    ) -> tuple[Tensor, Tensor]:
        """Shorten u, and α with it, to its limit."""
        if self.clipping == "none":
            return alpha, update
        limit = values["radius"] if self.clipping == "radius" else direction_l2
        share = shortening(update, limit)
        return share * alpha, rows.expand(share) * update

    def _searched(
        self, state: State, solved: Solved, alpha: Tensor, update: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return α and u as a line search leaves them, or as they are, and h(θ + u)."""
        theta, objective = state.parameters, solved.objective
        if not self.line_search:
            return alpha, update, objective.value(theta + update)
        slope = rows.dot(solved.here.gradient, update)
        share, loss_after = armijo(
            lambda s: objective.value(theta + s), update, solved.here.loss, slope, state.active
        )
        return share * alpha, rows.expand(share) * update, loss_after

    def _curvature_evaluation(
        self, here: Evaluation, theta: Tensor, objective: Objective | None
    ) -> Evaluation:
        if self.independent_batch != (objective is not None):
            needed = "needs" if self.independent_batch else "takes no"
            raise ValueError(f"curvature_batch: this recipe {needed} curvature objective")
        return here if objective is None else objective.evaluate(theta)

    @staticmethod
    def _eq3(norm: Tensor, values: Values, step: Tensor) -> Tensor:
        if {"epsilon", "sigma", "smoothness"} <= values.keys():
            return eq3(norm, values, step)
        return torch.full_like(norm, torch.nan)


def _freeze(before: State, after: State, finite: Tensor) -> State:
    """Keep the last finite state of rows that diverged now or earlier, and note the step."""
    keep = before.active & finite
    return replace(
        after,
        parameters=rows.where(keep, after.parameters, before.parameters),
        direction=rows.where(keep, after.direction, before.direction),
        damping=rows.where(keep, after.damping, before.damping),
        step=rows.where(keep, after.step, before.step),
        diverged_at=torch.where(before.active & ~finite, after.step, before.diverged_at),
        moments={name: rows.where(keep, new, before.moments[name]) for name, new in after.moments.items()},
    )

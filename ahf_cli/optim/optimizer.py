"""Algorithm 1: the order of a step, and the composition of its parts from a recipe's structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast, overload

import torch
from torch import Tensor

import ahf_cli.optim.rows as rows
from ahf_cli.optim.any_optimizer import AnyOptimizer
from ahf_cli.optim.damping import Change, DampingRule, RatioRounding, ReductionRatio, towards
from ahf_cli.optim.explicit import FirstOrderOptimizer
from ahf_cli.optim.foreign import Foreign
from ahf_cli.optim.moments import Transform
from ahf_cli.optim.newton import Direct, IterateChoice, LinearSolver, LinearSystem
from ahf_cli.optim.objective import Counted, Objective, Regularization
from ahf_cli.optim.operators import Curvature, DampingMatrix, Operator, QuadraticModel, identity
from ahf_cli.optim.precision import in_full_precision
from ahf_cli.optim.preconditioners import Fitted, Preconditioner, Surroundings
from ahf_cli.optim.rows import Layout
from ahf_cli.optim.schedule import Averaged, Schedule, Scheduled, at_once, constant
from ahf_cli.optim.state import Solved, State, StepInfo, Taken, begin, newton_step
from ahf_cli.optim.step_size import Clipping, LineSearch, Ray, StepSize, full_step
from ahf_cli.recipes.structure import AnyStructure, Structure, Whole

Norm = Callable[[Layout, Tensor], Tensor]
"""(layout, v) ↦ ‖v‖ of each row; (K, P) → (K,)."""


@dataclass(frozen=True)
class Optimizer:
    """Hessian-free optimization as a composition of parts; `compose` makes it from a recipe's structure."""

    curvature: Curvature
    independent_batch: bool
    """whether the curvature B is taken on a second batch"""
    solver: LinearSolver
    transform: Transform
    norm: Norm
    step_size: StepSize
    reduction_ratio: ReductionRatio
    ratio_rounding: RatioRounding
    damping_rule: DampingRule
    preconditioner: Preconditioner
    iterate: IterateChoice
    line_search: LineSearch
    regularization: Regularization
    clipping: Clipping
    curvature_batches: int = 1
    """number of mini-batches in a separate batch of the curvature"""
    schedule: Schedule = Schedule(constant, at_once)
    renewal: int = 1
    """steps between two renewals of the preconditioner's memory"""
    damping_matrix: DampingMatrix = identity
    """damping beside λI"""

    @property
    def recorded_loss(self) -> bool:
        """Whether h(θ + u) is evaluated for the record alone, so that it does not count."""
        return isinstance(self.solver, Direct) and not self.solver.measured and self.line_search is full_step

    def init(self, parameters: Tensor, hyperparameters: Mapping[str, Tensor | float]) -> State:
        """Make the state of K trials before their first step; see `begin`."""
        return begin(parameters, hyperparameters, self.transform.init(parameters))

    @in_full_precision
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
        objective = Counted(objective)
        h = self.regularization(objective, values)
        # δ from (B + λI) δ = −g, and the undamped model q.
        solved = self.solve(state, objective, curvature_objective)
        direction, model = solved.direction, solved.model
        # α and the moments give the update u.
        norm = self.norm(h.layout, direction)
        alpha = self.step_size(norm, values, t)
        if (factor := self.schedule(t, values)) is not None:
            alpha = (factor * alpha).to(alpha)
        vector, moments = self.transform(direction, state.moments, values, t)
        moments = {**moments, **solved.memory}
        wanted, update = self.clipping(alpha, rows.expand(alpha) * vector, direction, values)
        # u = δ, whose loss the choice of CG's iterate has found.
        same = self.transform.is_identity and rows.on_host(wanted) and bool((wanted == 1).all())
        known = solved.cg.loss if same else None
        ray = Ray(lambda s: h.value(theta + s), solved.here.loss, solved.gradient, state.active, known)
        alpha, update, loss_after = self.line_search(wanted, update, ray)
        # λ from the reduction ratio ρ.
        # With u = αδ the model q(u) follows from scalars; any other u takes one more product.
        multiple = alpha if self.transform.is_identity else None
        # The line search set α to 0; a step size of 0 by its own rule is no refusal.
        refused = (alpha == 0) & (wanted != 0)
        change = Change(ray.loss, loss_after, ray.loss_at, model, theta, update, multiple, refused)
        reduction = self.reduction_ratio(change)
        ratio, unknown = self.ratio_rounding(reduction, change)
        initial = values.get("damping", state.damping)
        damping = self.damping_rule(state.damping, ratio, initial)
        if unknown is not None:
            damping = torch.where(unknown, towards(state.damping, initial), damping)
        losses = objective.losses - (1 if self.recorded_loss else 0)
        taken = Taken(alpha, norm, update, loss_after, ratio, damping, reduction.products, losses)
        info = newton_step(state, solved, taken)
        after = state.moved(theta + update, solved.warm_start, damping, moments, info.finite)
        return after.began(rows.dot(solved.gradient, solved.gradient)), info

    @in_full_precision
    def solve(
        self, state: State, objective: Objective, curvature_objective: Objective | None = None
    ) -> Solved:
        """Find δ from (B + λI) δ = −g in every active row; same arguments as `step`."""
        if self.independent_batch != (curvature_objective is not None):
            needed = "needs a" if self.independent_batch else "takes no"
            raise ValueError(f"curvature_batch: this recipe {needed} curvature objective")
        theta, values, damping = state.parameters, state.hyperparameters, state.damping
        h = self.regularization(objective, values)
        here = there = h.evaluate(theta)
        if curvature_objective is not None:
            there = self.regularization(curvature_objective, values).evaluate(theta)
        # B before g: the exact Hessian builds the gradient with its graph, and g is read from it.
        operator = there.operator(self.curvature)
        damped = self.damping_matrix(damping, values)
        system = operator if damped is None else there.operator(damped)
        gradient = here.gradient
        # B alone: a preconditioner takes no account of structural damping.
        at = Surroundings(here, operator, damping, state.step, state.moments, there)
        fitted = self.preconditioner(at) or Fitted(None)
        memory = dict(fitted.memory)
        mean = None
        if isinstance(self.solver, Direct):
            mean, memory["mean"] = _moving_mean(gradient, state)

        def select(trials: Tensor) -> Operator | None:
            part = there.select(trials) if damped is None else None
            return None if part is None else part.operator(self.curvature)

        found = self.solver(
            LinearSystem(
                system, gradient, damping, state.direction, state.active, fitted.scaling,
                state.first_gradient, select, mean, values,
            )
        )  # fmt: skip
        found = replace(found, products=found.products + fitted.products * state.active)
        chosen = self.iterate(found, lambda s: h.value(theta + s))
        bend = None
        if damped is not None:
            # The structural term is damping as λI is: q, the model of h itself, has neither.  So δᵀBδ takes a
            # product with B alone.
            bend = rows.dot(chosen.solution, operator(chosen.solution))
            chosen = replace(chosen, products=chosen.products + state.active.long())
        model = QuadraticModel(operator, gradient, chosen.solution, chosen.residual_along, damping, bend)
        gradients = here.gradient_count + (0 if there is here else there.gradient_count) + fitted.gradients
        # The next solve starts from CG's last iterate (`found`), even if backtracking chose an earlier δ.
        return Solved(here, gradient, chosen, found.solution, model, gradients, memory)


def _moving_mean(gradient: Tensor, state: State) -> tuple[Tensor, Tensor]:
    """Return m̂ = m/(1 − γᵗ) and m ← γ m + (1 − γ) g with γ = `momentum`."""
    decay = state.hyperparameters["momentum"]
    before = state.moments.get("mean", torch.zeros_like(gradient))
    mean = torch.lerp(gradient, before, rows.expand(decay))
    return mean / rows.expand(1 - decay ** (state.step + 1)), mean


@overload
def compose(structure: Structure) -> Optimizer: ...


@overload
def compose(structure: AnyStructure) -> AnyOptimizer: ...


def compose(structure: AnyStructure) -> AnyOptimizer:
    """Make the optimizer of a structure from one part for each slot, without schedule and average."""
    if structure.hessian_free:
        return compose_newton(cast("Structure", structure))
    whole = cast("Whole", structure)
    if whole.is_class:
        return Foreign(whole.name, dict(whole.arguments))
    made: AnyOptimizer = whole.part(whole.slot)() if whole.slot == "optimizer" else whole.part(whole.slot)
    if isinstance(made, FirstOrderOptimizer):
        return replace(made, limit=whole.part("gradient_clipping"))
    return made


def compose_trial(structure: AnyStructure, steps: int) -> AnyOptimizer:
    """Make the optimizer of a trial of so many steps, with the structure's schedule and average."""
    optimizer = compose(structure)
    schedule = Schedule(structure.part("schedule"), structure.part("warmup"), steps)
    if isinstance(optimizer, Optimizer):
        optimizer = replace(optimizer, schedule=schedule)
    elif structure.scheduled:
        optimizer = Scheduled(optimizer, schedule)
    return Averaged(optimizer) if structure.chosen.get("average", "none") != "none" else optimizer


def compose_newton(structure: Structure) -> Optimizer:
    """Make the optimizer of the structural choices of a Hessian-free recipe."""
    part = structure.part
    iterate = part("backtracking")
    used = structure.parts_used
    if used["solver"].settings:
        solver: LinearSolver = Direct(measured=structure.damping_rule != "constant")
        preconditioner = structure.renewed("solver")
    else:
        solver = used["solver"].find()(
            part("cg_rules"), structure.max_iterations, structure.warm_start_decay,
            iterate.kept(structure.max_iterations),
        )  # fmt: skip
        preconditioner = structure.renewed("preconditioner")
    optimizer = Optimizer(
        curvature=part("curvature"),
        independent_batch=structure.curvature_batch == "independent",
        solver=solver,
        transform=part("moments"),
        norm=part("norm"),
        step_size=part("step_size"),
        reduction_ratio=part("reduction_ratio"),
        ratio_rounding=part("ratio_rounding"),
        damping_rule=part("damping_rule"),
        preconditioner=preconditioner,
        iterate=iterate,
        line_search=part("line_search"),
        regularization=part("regularization"),
        clipping=part("clipping"),
        curvature_batches=structure.curvature_batches,
        renewal=structure.renewal if structure.renews else 1,
        damping_matrix=part("damping_matrix"),
    )
    # Last of all a plug-in may replace parts of the finished composition.
    changed: Optimizer = part("parts")(optimizer) if structure.parts else optimizer
    return changed

"""The state of K trials between two steps, and the record of one step, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import ahf_cli.optim.rows as rows
from ahf_cli.optim.cg import CGResult, Stop
from ahf_cli.optim.linearization import Evaluation
from ahf_cli.optim.moments import Moments, Values
from ahf_cli.optim.operators import QuadraticModel
from ahf_cli.optim.rows import Layout
from ahf_cli.optim.step_size import conjugate_smoothness, eq3

AVERAGE = "average"
"""Name of the moment that holds the average θ̄ of the iterates."""


@dataclass(frozen=True)
class State:
    """Everything that a step reads and writes, for K trials of P parameters; nothing is kept elsewhere."""

    parameters: Tensor  # θ, (K, P)
    direction: Tensor  # δ of the last step, (K, P); 0 at first
    damping: Tensor  # λ, (K,)
    step: Tensor  # t, steps taken, (K,) int64
    diverged_at: Tensor  # number of the step that was not finite, (K,) int64; 0 before
    moments: Moments  # by name, (K, P); (K, …) in the memory of a preconditioner
    hyperparameters: Values  # by name, (K,)
    first_gradient: Tensor = None  # type: ignore[assignment]  # ‖g‖² of the first step, (K,); 0 before
    memories: tuple[Any, ...] = ()
    """memory of each row that is no tensor of all rows: of classes from other packages"""

    def __post_init__(self) -> None:
        if self.first_gradient is None:  # an older checkpoint
            object.__setattr__(self, "first_gradient", torch.zeros_like(self.damping))

    @property
    def active(self) -> Tensor:
        """Rows that still take steps, (K,) bool."""
        return self.diverged_at == 0

    @property
    def evaluated(self) -> Tensor:
        """The vectors that are evaluated, (K, P): the averages θ̄, or θ for a recipe without them."""
        return self.moments.get(AVERAGE, self.parameters)

    def state_dict(self) -> dict[str, Any]:
        """Return all fields as a dictionary; `State(**state_dict)` continues bitwise."""
        return {key: value for key, value in vars(self).items() if key != "memories" or value}

    def began(self, squared: Tensor) -> State:
        """Return the state with ‖g‖² of its first step, (K,), unless it is known."""
        return replace(
            self, first_gradient=torch.where(self.first_gradient > 0, self.first_gradient, squared)
        )

    def moved(
        self, parameters: Tensor, direction: Tensor, damping: Tensor, moments: Moments, finite: Tensor
    ) -> State:
        """Return the state after a step; a row that was not finite keeps its last finite state forever."""
        # One mask for all fields: a frozen row is one whole earlier state.
        t = self.step + 1
        keep = self.active & finite
        return replace(
            self,
            parameters=rows.where(keep, parameters, self.parameters),
            direction=rows.where(keep, direction, self.direction),
            damping=rows.where(keep, damping, self.damping),
            step=rows.where(keep, t, self.step),
            diverged_at=torch.where(self.active & ~finite, t, self.diverged_at),
            # A moment that begins at this step has no earlier value.
            moments={
                name: rows.where(keep, new, self.moments.get(name, new)) for name, new in moments.items()
            },
        )


def begin(parameters: Tensor, hyperparameters: Mapping[str, Tensor | float], moments: Moments) -> State:
    """Make the state of K trials before their first step.

    Args:
        parameters: θ₀, (K, P).
        hyperparameters: by name, one number for all trials or (K,) of them; `damping` is λ₀.
        moments: by name, (K, P).
    """
    count = parameters.shape[0]
    # `expand` gives all rows one memory; clones keep the rows apart.
    values = {
        name: torch.as_tensor(value, dtype=parameters.dtype, device=parameters.device).expand(count).clone()
        for name, value in hyperparameters.items()
    }
    zeros = torch.zeros(count, dtype=torch.int64, device=parameters.device)
    damping = values["damping"].clone() if "damping" in values else parameters.new_zeros(count)
    return State(
        parameters, torch.zeros_like(parameters), damping, zeros, zeros.clone(), moments, values,
        parameters.new_zeros(count),
    )  # fmt: skip


@dataclass(frozen=True)
class StepInfo:
    """The numbers of one step; without meaning in rows that were not active before it."""

    loss: Tensor  # h(θ) on the gradient batch, (K,)
    loss_after: Tensor  # h(θ + u) on the same batch, (K,)
    direction: Tensor  # δ, (K, P)
    update: Tensor  # u, (K, P)
    direction_l2: Tensor  # (K,), as all that follow
    direction_l1: Tensor
    direction_sum_l2: Tensor
    update_l2: Tensor
    step_size: Tensor  # α of the step taken
    eq3_step_size: Tensor  # Eq. 3 before clipping at 0; NaN without its hyperparameters
    damping: Tensor  # λ of the linear system of this step
    damping_next: Tensor
    reduction_ratio: Tensor  # ρ
    model_value: Tensor  # q(δ)
    cg_iterations: Tensor  # int64
    stop: Tensor  # `Stop` codes, int64
    smoothness_gradient: Tensor  # L̂ with g = ∇h
    smoothness_direction: Tensor  # L̂ with g = −δ
    products: Tensor  # curvature products of the step, int64
    gradients: int | Tensor  # gradient evaluations of the step, equal in all rows or (K,) int64
    losses: int  # loss evaluations of the step without a gradient, equal in all rows
    gradient: Tensor  # g, (K, P)
    active: Tensor  # rows that were active before the step, bool
    finite: Tensor  # rows whose δ, u and new loss are finite, bool


@dataclass(frozen=True)
class Solved:
    """The first half of a step: g, δ, and the model around δ."""

    here: Evaluation  # h at θ on the gradient batch
    gradient: Tensor  # g, (K, P)
    cg: CGResult  # δ and its residual
    warm_start: Tensor  # start of the next solve, (K, P)
    model: QuadraticModel
    gradients: int  # gradient evaluations, equal in all rows
    memory: Moments  # of the preconditioner, and the moving mean of g

    @property
    def direction(self) -> Tensor:
        """δ, (K, P)."""
        return self.cg.solution


@dataclass(frozen=True)
class Taken:
    """The second half of a step: the update, and the damping after it."""

    alpha: Tensor  # (K,)
    norm: Tensor  # ‖δ‖ in the norm of the step-size rule, (K,)
    update: Tensor  # u, (K, P)
    loss_after: Tensor  # h(θ + u), (K,)
    ratio: Tensor  # ρ, (K,)
    damping: Tensor  # λ of the next step, (K,)
    products: int  # curvature products of ρ
    losses: int  # loss evaluations, equal in all rows


def newton_step(before: State, solved: Solved, taken: Taken) -> StepInfo:
    """Return the record of a step that solved a linear system."""
    none = torch.full_like(taken.norm, torch.nan)
    # Eq. 3 is recorded also for recipes with another step size, so that its traces can be compared.
    values = before.hyperparameters
    known = {"epsilon", "sigma", "smoothness"} <= values.keys()
    return _record(
        before, solved.here.layout, solved.here.loss, solved.gradient, solved.direction, taken.update,
        taken.loss_after,
        step_size=taken.alpha,
        eq3_step_size=eq3(taken.norm, values, before.step + 1) if known else none,
        damping=before.damping, damping_next=taken.damping, reduction_ratio=taken.ratio,
        model_value=solved.model.along(1.0), cg_iterations=solved.cg.iterations, stop=solved.cg.stop,
        products=solved.cg.products + taken.products, gradients=solved.gradients, losses=taken.losses,
    )  # fmt: skip


def explicit_step(
    before: State, here: Evaluation, update: Tensor, loss_after: Tensor, products: int,
    gradients: int | Tensor = 1,
) -> StepInfo:  # fmt: skip
    """Return the record of a step without a linear system: δ = −g, and NaN or 0 for all of CG.

    Its one loss evaluation is for the record alone, and does not count.
    """
    gradient = here.gradient
    nan, none = torch.full_like(loss_after, torch.nan), torch.zeros_like(before.step)
    return _record(
        before, here.layout, here.loss, gradient, -gradient, update, loss_after,
        step_size=before.hyperparameters.get("lr", nan), eq3_step_size=nan, damping=nan, damping_next=nan,
        reduction_ratio=nan, model_value=nan, cg_iterations=none, stop=none + int(Stop.INACTIVE),
        products=none + products, gradients=gradients, losses=0,
    )  # fmt: skip


@dataclass(frozen=True)
class FactoredStep:
    """The numbers of a step that solved a linear system by a factorization."""

    loss: Tensor  # h(θ), (K,)
    gradient: Tensor  # ∇h, (K, P)
    update: Tensor  # u, (K, P); 0 for a refused step
    loss_after: Tensor  # (K,), as all that follow
    damping: Tensor  # λ of the last system
    damping_next: Tensor
    ratio: Tensor  # ρ
    model_value: Tensor  # q(u)
    products: int
    losses: int


def factored_step(before: State, layout: Layout, own: FactoredStep) -> StepInfo:
    """Return the record of a step by a factorization: δ = u, and 0 for all of CG."""
    nan, none = torch.full_like(own.loss, torch.nan), torch.zeros_like(before.step)
    return _record(
        before, layout, own.loss, own.gradient, own.update, own.update, own.loss_after,
        step_size=(rows.l2(own.update) > 0).to(own.loss), eq3_step_size=nan, damping=own.damping,
        damping_next=own.damping_next, reduction_ratio=own.ratio, model_value=own.model_value,
        cg_iterations=none, stop=none + int(Stop.INACTIVE), products=none + own.products, gradients=1,
        losses=own.losses,
    )  # fmt: skip


def _record(
    before: State, layout: Layout, loss: Tensor, gradient: Tensor, direction: Tensor, update: Tensor,
    loss_after: Tensor, **own: Tensor | int,
) -> StepInfo:  # fmt: skip
    smoothness = partial(conjugate_smoothness, loss, loss_after, update=update)
    return StepInfo(
        loss=loss,
        loss_after=loss_after,
        gradient=gradient,
        direction=direction,
        update=update,
        direction_l2=layout.l2(direction),
        direction_l1=layout.l1(direction),
        direction_sum_l2=layout.sum_l2(direction),
        update_l2=rows.l2(update),
        smoothness_gradient=smoothness(rows.dot(gradient, update)),
        smoothness_direction=smoothness(-rows.dot(direction, update)),
        active=before.active,
        finite=rows.finite(direction) & rows.finite(update) & rows.finite(loss_after),
        **own,  # type: ignore[arg-type]
    )

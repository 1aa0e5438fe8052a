"""Recipes whose update is a formula of gradient and memory, without a linear system."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ahf_cli.optim import rows
from ahf_cli.optim.cg import Stop
from ahf_cli.optim.objective import Evaluation, Objective
from ahf_cli.optim.optimizer import State, StepInfo, begin, finish
from ahf_cli.optim.step_size import conjugate_smoothness
from ahf_cli.optim.transform import Moments


@dataclass(frozen=True)
class Move:
    """One step of such a recipe, row by row."""

    parameters: Tensor  # θ + u, (K, P)
    update: Tensor  # u, (K, P)
    moments: Moments
    products: int = 0  # curvature products that it took


class ExplicitOptimizer(ABC):
    """θ ← θ + u; subclasses say u and what it remembers, all of it vectors that are zero at first."""

    independent_batch = False
    curvature_batches = 1

    @property
    @abstractmethod
    def memory(self) -> tuple[str, ...]:
        """Names of the moments."""

    @abstractmethod
    def move(self, state: State, here: Evaluation) -> Move:
        """Return the update and the new moments, given h at θ."""

    def init(self, parameters: Tensor, hyperparameters: Mapping[str, Tensor | float]) -> State:
        """Make the state of K trials before their first step; (K, P)."""
        moments = {name: torch.zeros_like(parameters) for name in self.memory}
        return begin(parameters, hyperparameters, moments)

    def step(
        self, state: State, objective: Objective, curvature_objective: Objective | None = None
    ) -> tuple[State, StepInfo]:
        """Take one step in every active row."""
        if curvature_objective is not None:
            raise ValueError("curvature_batch: this recipe takes no curvature objective")
        here = objective.evaluate(state.parameters)
        move = self.move(state, here)
        info = _info(state, here, move, objective.value(move.parameters))
        return finish(state, move.parameters, -here.gradient, state.damping, move.moments, info)


def _info(state: State, here: Evaluation, move: Move, loss_after: Tensor) -> StepInfo:
    """Describe a step: its direction is −g, and what belongs to a linear system is NaN or 0."""
    direction, update = -here.gradient, move.update
    norms = here.layout.norms(direction)
    nan, none = torch.full_like(loss_after, torch.nan), torch.zeros_like(state.step)
    smoothness = partial(conjugate_smoothness, here.loss, loss_after, update=update)
    return StepInfo(
        loss=here.loss, loss_after=loss_after, direction=direction, update=update,
        direction_l2=norms["l2"], direction_l1=norms["l1"], direction_sum_l2=norms["sum_l2"],
        update_l2=rows.l2(update), step_size=state.hyperparameters["lr"], eq3_step_size=nan, damping=nan,
        damping_next=nan, reduction_ratio=nan, model_value=nan, cg_iterations=none,
        stop=none + int(Stop.INACTIVE),
        smoothness_gradient=smoothness(rows.dot(here.gradient, update)),
        smoothness_direction=smoothness(-rows.dot(direction, update)),
        products=none + move.products, gradients=1, active=state.active,
        finite=rows.finite(direction) & rows.finite(update) & rows.finite(loss_after),
    )  # fmt: skip

"""Recipes whose update is a formula of gradient and memory, without a linear system."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ahf_cli.optim.linearization import Evaluation
from ahf_cli.optim.moments import Moments
from ahf_cli.optim.objective import Objective
from ahf_cli.optim.state import State, begin
from ahf_cli.optim.step_info import StepInfo, explicit_step


@dataclass(frozen=True)
class Move:
    """One step of such a recipe, row by row."""

    parameters: Tensor  # θ + u, (K, P)
    update: Tensor  # u, (K, P)
    moments: Moments
    products: int = 0  # curvature products that it took


class ExplicitOptimizer(ABC):
    """θ ← θ + u; a subclass gives u and its memory, vectors that are zero at first."""

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
        loss_after = objective.value(move.parameters)
        info = explicit_step(state, here, move.update, loss_after, move.products)
        after = state.moved(move.parameters, -here.gradient, state.damping, move.moments, info.finite)
        return after, info

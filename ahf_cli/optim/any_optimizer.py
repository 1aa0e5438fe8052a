"""The protocol of every optimizer of K trials, Hessian-free or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from ahf_cli.optim.objective import Objective
from ahf_cli.optim.state import State, StepInfo


class AnyOptimizer(Protocol):
    """An optimizer of the rows of a `State`, Hessian-free or not."""

    @property
    def curvature_batches(self) -> int:
        """Number of mini-batches in a separate batch of the curvature."""
        ...

    @property
    def independent_batch(self) -> bool:
        """Whether the curvature is taken on a second batch."""
        ...

    def init(self, parameters: Tensor, hyperparameters: Mapping[str, Tensor | float]) -> State:
        """Make the state of K trials before their first step."""
        ...

    def step(
        self, state: State, objective: Objective, curvature_objective: Objective | None = None
    ) -> tuple[State, StepInfo]:
        """Take one step in every active row."""
        ...

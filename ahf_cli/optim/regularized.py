"""Weight decay as a part of the objective: h(θ) + ½ w ‖θ‖², with its gradient and its curvature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ahf_cli.optim import rows
from ahf_cli.optim.linearization import Evaluation, Linearization
from ahf_cli.optim.moments import Values
from ahf_cli.optim.objective import Objective
from ahf_cli.optim.operators import Operator, shifted
from ahf_cli.optim.rows import Layout

Regularization = Callable[[Objective, Values], Objective]
"""(h, hyperparameters) ↦ h with its added term."""


@dataclass(frozen=True)
class RegularizedEvaluation:
    """An evaluation of h with ½ w ‖θ‖² added."""

    inner: Evaluation
    parameters: Tensor  # θ, (K, P)
    decay: Tensor  # w, (K,)

    @property
    def layout(self) -> Layout:
        """Where each parameter tensor lies in a row."""
        return self.inner.layout

    @property
    def loss(self) -> Tensor:
        """h + ½ w ‖θ‖², (K,)."""
        return self.inner.loss + penalty(self.parameters, self.decay)

    @property
    def gradient(self) -> Tensor:
        """∇h + w θ, (K, P)."""
        return self.inner.gradient.addcmul(rows.expand(self.decay), self.parameters)

    @property
    def gradient_count(self) -> int:
        """Gradients that were computed so far."""
        return self.inner.gradient_count

    def operator(self, curvature: Callable[[Linearization], Operator]) -> Operator:
        """v ↦ (B + w I) v, whatever B is."""
        return shifted(self.inner.operator(curvature), self.decay)

    def squared_gradients(self) -> Tensor:
        """The diagonal of the empirical Fisher matrix, plus the penalty's curvature w; (K, P)."""
        return self.inner.squared_gradients() + rows.expand(self.decay)


@dataclass(frozen=True)
class Regularized:
    """An objective with ½ w ‖θ‖² added; w, (K,)."""

    inner: Objective
    decay: Tensor

    @property
    def layout(self) -> Layout:
        """Where each parameter tensor lies."""
        return self.inner.layout

    def value(self, parameters: Tensor) -> Tensor:
        """h(θ) + ½ w ‖θ‖²; (K, P) → (K,)."""
        return self.inner.value(parameters) + penalty(parameters, self.decay)

    def evaluate(self, parameters: Tensor) -> RegularizedEvaluation:
        """Prepare it and its derivatives at θ; (K, P)."""
        return RegularizedEvaluation(self.inner.evaluate(parameters), parameters, self.decay)


def penalty(parameters: Tensor, decay: Tensor) -> Tensor:
    """½ w ‖θ‖² of each row; (K, P), (K,) → (K,)."""
    return 0.5 * decay * rows.dot(parameters, parameters)


def unchanged(objective: Objective, values: Values) -> Objective:
    """h itself."""
    return objective


def l2(objective: Objective, values: Values) -> Objective:
    """h + ½ w ‖θ‖², w the hyperparameter `weight_decay`."""
    return Regularized(objective, values["weight_decay"])

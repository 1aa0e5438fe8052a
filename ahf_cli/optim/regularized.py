"""h(θ) + ½ w ‖θ‖²: weight decay as a part of the objective, and so of its gradient and its curvature."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ahf_cli.optim import rows
from ahf_cli.optim.objective import Evaluation, Objective
from ahf_cli.optim.rows import Layout


class RegularizedEvaluation(Evaluation):
    """An evaluation of h with ½ w ‖θ‖² added; w, (K,)."""

    def __init__(self, inner: Evaluation, parameters: Tensor, decay: Tensor):
        super().__init__(inner.layout, inner.leaves, inner.losses, inner.outputs)
        self.inner, self.parameters, self.decay = inner, parameters, decay

    @property
    def loss(self) -> Tensor:
        """h + ½ w ‖θ‖², (K,)."""
        return self.inner.loss + penalty(self.parameters, self.decay)

    @cached_property
    def differentiable_gradients(self) -> tuple[Tensor, ...]:
        """∇h alone, with its graph: the penalty's curvature needs none."""
        return self.inner.differentiable_gradients

    @cached_property
    def gradient(self) -> Tensor:
        """∇h + w θ, (K, P)."""
        return self._shifted(self.inner.gradient, self.parameters)

    def hessian_product(self, vectors: Tensor) -> Tensor:
        """(∇²h + w I) v."""
        return self._shifted(self.inner.hessian_product(vectors), vectors)

    def gauss_newton_product(self, vectors: Tensor) -> Tensor:
        """(Jᵀ H_L J + w I) v."""
        return self._shifted(self.inner.gauss_newton_product(vectors), vectors)

    def fisher_product(self, vectors: Tensor) -> Tensor:
        """(F + w I) v."""
        return self._shifted(self.inner.fisher_product(vectors), vectors)

    def squared_gradients(self) -> Tensor:
        """The diagonal of the empirical Fisher matrix, and w, (K, P): the penalty's own curvature."""
        return self.inner.squared_gradients() + rows.expand(self.decay)

    def _shifted(self, product: Tensor, vectors: Tensor) -> Tensor:
        return product.addcmul(rows.expand(self.decay), vectors)


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

    def evaluate(self, parameters: Tensor) -> Evaluation:
        """Prepare it and its derivatives at θ; (K, P)."""
        return RegularizedEvaluation(self.inner.evaluate(parameters), parameters, self.decay)


def penalty(parameters: Tensor, decay: Tensor) -> Tensor:
    """½ w ‖θ‖² of each row; (K, P), (K,) → (K,)."""
    return 0.5 * decay * rows.dot(parameters, parameters)

"""The matrix B of a step, as products, and the quadratic model that it makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ahf_cli.optim import rows
from ahf_cli.optim.objective import Evaluation

Operator = Callable[[Tensor], Tensor]
"""v ↦ B v for each row; (K, P) → (K, P)."""


@dataclass(frozen=True)
class HessianOperator:
    """v ↦ ∇²h(θ) v, exact, by a backward pass through the kept graph of the gradient (Pearlmutter 1994)."""

    evaluation: Evaluation

    def __call__(self, vectors: Tensor) -> Tensor:
        """Multiply by ∇²h(θ)."""
        return self.evaluation.hessian_product(vectors)

    def prepare(self) -> None:
        """Build the gradient's graph now, so that the gradient itself is read from it."""
        _ = self.evaluation.differentiable_gradients


@dataclass(frozen=True)
class GaussNewtonOperator:
    """v ↦ Jᵀ H_L J v, the generalized Gauss-Newton matrix (Schraudolph 2002)."""

    evaluation: Evaluation

    def __call__(self, vectors: Tensor) -> Tensor:
        """Multiply by Jᵀ H_L J."""
        return self.evaluation.gauss_newton_product(vectors)

    def prepare(self) -> None:
        """Nothing to share with the gradient."""


@dataclass(frozen=True)
class FisherOperator:
    """v ↦ F v, the Fisher matrix of the model's own distribution p_θ(y | x) (Amari 1998).

    F = E_x E_{y∼p_θ} s sᵀ with the score s = ∇ log p_θ(y | x).  For softmax and cross-entropy it
    is the Gauss-Newton matrix (Pascanu and Bengio 2014).
    """

    evaluation: Evaluation

    def __call__(self, vectors: Tensor) -> Tensor:
        """Multiply by F."""
        return self.evaluation.fisher_product(vectors)

    def prepare(self) -> None:
        """Nothing to share with the gradient."""


CurvatureOperator = HessianOperator | GaussNewtonOperator | FisherOperator


@dataclass(frozen=True)
class Damped:
    """v ↦ (B + λI) v."""

    operator: Operator
    damping: Tensor  # λ, (K,)

    def __call__(self, vectors: Tensor) -> Tensor:
        """Multiply by B + λI."""
        return self.operator(vectors).addcmul(rows.expand(self.damping), vectors)


@dataclass(frozen=True)
class QuadraticModel:
    """q(s) = gᵀs + ½ sᵀBs, undamped, around the solution δ of (B + λI) δ ≈ −g."""

    operator: Operator
    gradient: Tensor  # g, (K, P)
    direction: Tensor  # δ, (K, P)
    residual: Tensor  # r = −g − (B + λI)δ, (K, P)
    damping: Tensor  # λ, (K,)

    def along(self, scale: Tensor | float) -> Tensor:
        """q(αδ) = α gᵀδ + ½ α² δᵀBδ without a product, since δᵀBδ = δᵀ(−g − r) − λ‖δ‖²; (K,) → (K,)."""
        slope = rows.dot(self.gradient, self.direction)
        squared = rows.dot(self.direction, self.direction)
        bend = -slope - rows.dot(self.residual, self.direction) - self.damping * squared
        return scale * slope + 0.5 * scale * scale * bend

    def at(self, step: Tensor) -> Tensor:
        """q(s) at any s, with one product; (K, P) → (K,)."""
        return rows.dot(self.gradient, step) + 0.5 * rows.dot(step, self.operator(step))

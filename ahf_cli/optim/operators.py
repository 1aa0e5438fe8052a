"""B of one step as a linear operator: products compose, and a wrapper of a product wraps every curvature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

import ahf_cli.optim.rows as rows
from ahf_cli.optim.linearization import Linearization

Operator = Callable[[Tensor], Tensor]
"""v ↦ B v for each row; (K, P) → (K, P)."""
Curvature = Callable[[Linearization], Operator]
"""h at one θ ↦ its operator B."""


def hessian(at: Linearization) -> Operator:
    """B = ∇²h(θ), exact, by a backward pass through the kept graph of the gradient (Pearlmutter 1994)."""
    _ = at.gradients  # built now, so that the gradient itself is read from this graph
    return at.hvp


def gauss_newton(at: Linearization) -> Operator:
    """B = Jᵀ H_L J, the generalized Gauss-Newton matrix (Schraudolph 2002).

    For a negative log-likelihood in the natural parameters of an exponential family, such as softmax and
    cross-entropy, it is the Fisher matrix of the model's distribution (Martens 2020).
    """
    at.check_outputs()
    loss_hessian = at.loss_hessian()
    return lambda v: at.vjp(loss_hessian(at.jvp(v)))


def shifted(operator: Operator, amount: Tensor) -> Operator:
    """v ↦ (B + a I) v; a, (K,)."""
    return lambda v: operator(v).addcmul(rows.expand(amount), v)


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

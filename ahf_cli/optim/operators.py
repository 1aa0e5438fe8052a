"""The curvature B of one step as a linear operator v ↦ B v, and operators made from others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

import ahf_cli.optim.rows as rows
from ahf_cli.optim.linearization import Linearization
from ahf_cli.optim.moments import Values

Operator = Callable[[Tensor], Tensor]
"""v ↦ B v for each row; (K, P) → (K, P)."""
Curvature = Callable[[Linearization], Operator]
"""h at one θ ↦ its operator B."""


def hessian(at: Linearization) -> Operator:
    """B = ∇²h(θ), exact, by products that differentiate the gradient along v (Pearlmutter 1994)."""
    at.prepare_hvp()
    return at.hvp


def gauss_newton(at: Linearization) -> Operator:
    """B = Jᵀ H_L J, the generalized Gauss-Newton matrix (Schraudolph 2002).

    It is the Fisher matrix of the model's distribution if the loss is a negative log-likelihood in natural
    parameters of an exponential family (Martens 2020).  Cross-entropy of a softmax is such a loss.
    """
    at.check_outputs()
    loss_hessian = at.loss_hessian()  # once a step: H_L depends on the outputs alone, not on v

    def product(v: Tensor) -> Tensor:
        return at.vjp(loss_hessian(at.jvp(v)))

    beside = at.beside_outputs()  # a penalty on the weights within the loss has its own curvature
    return product if beside is None else lambda v: product(v) + beside(v)


def automatic(at: Linearization) -> Operator:
    """B = Jᵀ H_L J if the outputs are known, else ∇²h."""
    return gauss_newton(at) if at.has_outputs else hessian(at)


def shifted(operator: Operator, amount: Tensor) -> Operator:
    """Return v ↦ (B + a I) v; a, (K,)."""
    return lambda v: operator(v).addcmul(rows.expand(amount), v)


DampingMatrix = Callable[[Tensor, Values], Curvature | None]
"""(λ, hyperparameters) ↦ the operator of B and all damping beside λI; None for B alone; λ, (K,)."""


def identity(damping: Tensor, values: Values) -> None:
    """Return None: λI is the only damping."""


def structural(damping: Tensor, values: Values) -> Curvature:
    """Return B + λμS, S = (1/N) Σ_n J_{h,n}ᵀ J_{h,n} (Martens and Sutskever 2011).

    J_{h,n} is the Jacobian of all hidden states of example n.  S is the Gauss-Newton matrix of the mean over
    examples of ½ ‖h(θ + s) − h(θ)‖².  μ is the hyperparameter `structural_weight`.  B is the Gauss-Newton
    matrix, so that one pass forward and backward gives B v + λμS v.
    """
    weight = damping * values["structural_weight"]
    return lambda at: gauss_newton(at.with_states(weight))


@dataclass(frozen=True)
class QuadraticModel:
    """q(s) = gᵀs + ½ sᵀBs, undamped, around the solution δ of (B + λI) δ ≈ −g."""

    operator: Operator
    gradient: Tensor  # g, (K, P)
    direction: Tensor  # δ, (K, P)
    residual_along: Tensor  # rᵀδ with r = −g − (B + λI)δ, (K,)
    damping: Tensor  # λ, (K,)
    bend: Tensor | None = None  # δᵀBδ, (K,), where more than λI damps the system

    def along(self, scale: Tensor | float) -> Tensor:
        """q(αδ) = α gᵀδ + ½ α² δᵀBδ without a product, since δᵀBδ = δᵀ(−g − r) − λ‖δ‖²; (K,) → (K,)."""
        slope = rows.dot(self.gradient, self.direction)
        if self.bend is not None:
            return scale * slope + 0.5 * scale * scale * self.bend
        squared = rows.dot(self.direction, self.direction)
        # r and λ come from CG; they replace the product B δ.
        bend = -slope - self.residual_along - self.damping * squared
        return scale * slope + 0.5 * scale * scale * bend

    def at(self, step: Tensor) -> Tensor:
        """q(s) at any s, with one product; (K, P) → (K,)."""
        return rows.dot(self.gradient, step) + 0.5 * rows.dot(step, self.operator(step))

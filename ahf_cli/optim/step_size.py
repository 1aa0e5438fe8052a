"""Step sizes α, and the rules that shorten them: clipping and line searches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

import ahf_cli.optim.rows as rows
from ahf_cli.optim.moments import Values, beta1
from ahf_cli.optim.newton import LossAt


class StepSize(Protocol):
    """A rule for α at step t, from the norm G of the direction."""

    def __call__(self, norm: Tensor, values: Values, step: Tensor) -> Tensor:
        """Return α; G (K,), hyperparameters, t (K,) → (K,)."""
        ...


class ConstantStep:
    """α_t = α, the hyperparameter `lr`."""

    def __call__(self, norm: Tensor, values: Values, step: Tensor) -> Tensor:
        """Return `lr`."""
        return values["lr"]


class HyperbolicStep:
    """α_t = α / (1 + (t − 1)/τ): α at first, and α/2 after τ steps, for a run of any length."""

    def __call__(self, norm: Tensor, values: Values, step: Tensor) -> Tensor:
        """Return α_t."""
        return values["lr"] / (1 + (step - 1) / values["halving"])


@dataclass(frozen=True)
class Scaled:
    """Another rule's α times a number."""

    rule: StepSize
    factor: float

    def __call__(self, norm: Tensor, values: Values, step: Tensor) -> Tensor:
        """Return the product."""
        return self.factor * self.rule(norm, values, step)


def eq3(norm: Tensor, values: Values, step: Tensor, slack: float = 1.0) -> Tensor:
    """Return α_t = 4 [G²(1−β₁) − s G(β₁−β₁ᵗ)σ] / (3 L (1−β₁ᵗ)² σ), which may be negative; (K,).

    The slack s = 1 gives the paper's Eq. 3.
    """
    b1, sigma, L = beta1(values), values["sigma"], values["smoothness"]
    b1t = b1**step
    bracket = norm.square() * (1 - b1) - slack * norm * (b1 - b1t) * sigma
    return 4 * bracket / (3 * L * (1 - b1t).square() * sigma)


class ConjugateSmoothnessStep:
    """Eq. 3 as printed, clipped at 0: it is negative for G < (ε/2)(1−β₁ᵗ⁻¹)."""

    def __call__(self, norm: Tensor, values: Values, step: Tensor) -> Tensor:
        """Return max(0, α_t)."""
        return eq3(norm, values, step).clamp_min(0)


class RepairedConjugateSmoothnessStep:
    """Eq. 3 with s = 3/2, clipped at 0: the negative term's bound by 1/ξ, for ξ = 2σ (docs/theory.md)."""

    def __call__(self, norm: Tensor, values: Values, step: Tensor) -> Tensor:
        """Return max(0, α_t)."""
        return eq3(norm, values, step, slack=1.5).clamp_min(0)


class Clipping(Protocol):
    """A rule that shortens α and u if u is longer than a limit."""

    def __call__(
        self, alpha: Tensor, update: Tensor, direction: Tensor, values: Values
    ) -> tuple[Tensor, Tensor]:
        """Return α and u; α (K,), u (K, P), δ (K, P), hyperparameters → (K,), (K, P)."""
        ...


def unclipped(alpha: Tensor, update: Tensor, direction: Tensor, values: Values) -> tuple[Tensor, Tensor]:
    """Return α and u of any length, unchanged."""
    return alpha, update


def within_radius(alpha: Tensor, update: Tensor, direction: Tensor, values: Values) -> tuple[Tensor, Tensor]:
    """Shorten to ‖u‖ ≤ r, the hyperparameter `radius`."""
    return _shortened(alpha, update, values["radius"])


def within_direction(
    alpha: Tensor, update: Tensor, direction: Tensor, values: Values
) -> tuple[Tensor, Tensor]:
    """Shorten to ‖u‖ ≤ ‖δ‖."""
    return _shortened(alpha, update, rows.l2(direction))


def _shortened(alpha: Tensor, update: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    share = shortening(update, limit)
    return share * alpha, rows.expand(share) * update


def shortening(update: Tensor, limit: Tensor) -> Tensor:
    """Return min(1, limit/‖u‖), the factor that shortens u to a limit; (K, P), (K,) → (K,)."""
    # 0/0 is the zero update at limit 0: no factor is needed.
    return (limit / rows.l2(update)).clamp(max=1).nan_to_num(nan=1.0)


def conjugate_smoothness(loss: Tensor, loss_after: Tensor, slope: Tensor, update: Tensor) -> Tensor:
    """Return the conjugate smoothness that a step shows, by Eq. 2; (K,).

    L̂ = 2 (h(y) − h(x) − ⟨g, y−x⟩)/‖y−x‖² with y = x + u and slope = ⟨g, u⟩.
    """
    return 2 * (loss_after - loss - slope) / rows.dot(update, update)


ARMIJO, FACTOR, TRIES = 1e-2, 0.8, 60
"""c of the line search, the factor of α at each try, and the number of tries (Martens 2010, §4.6)."""


@dataclass(frozen=True)
class Ray:
    """The surroundings of a line search along an update u."""

    loss_at: LossAt  # h around θ
    loss: Tensor  # h(θ), (K,)
    gradient: Tensor  # g, (K, P)
    active: Tensor  # rows that still take steps, (K,) bool
    loss_after: Tensor | None = None  # h(θ + u), (K,), if it is known already

    def full(self, update: Tensor) -> Tensor:
        """Return h(θ + u)."""
        return self.loss_at(update) if self.loss_after is None else self.loss_after


class LineSearch(Protocol):
    """A search along u; returns the new α and u, and h(θ + u)."""

    def __call__(self, alpha: Tensor, update: Tensor, ray: Ray) -> tuple[Tensor, Tensor, Tensor]:
        """Search along u; (K,), (K, P) → (K,), (K, P), (K,)."""
        ...


def full_step(alpha: Tensor, update: Tensor, ray: Ray) -> tuple[Tensor, Tensor, Tensor]:
    """Return α and u unchanged, and h(θ + u)."""
    return alpha, update, ray.full(update)


def armijo(alpha: Tensor, update: Tensor, ray: Ray) -> tuple[Tensor, Tensor, Tensor]:
    """Scale α and u by the largest s of 1, 0.8, 0.8², … with h(θ + su) ≤ h(θ) + c s min(gᵀu, 0).

    s = 0 after 60 tries.
    """
    # If u ascends by the gradient, gᵀu > 0, the plain rule would accept a rise of h.
    share, loss_after = armijo_share(ray, update, rows.dot(ray.gradient, update).clamp_max(0))
    return share * alpha, rows.expand(share) * update, loss_after


def armijo_share(ray: Ray, update: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share s of an update and h(θ + su), (K,); rows that are not active have s = 1.

    Args:
        ray: h around θ.
        update: u, (K, P).
        slope: gᵀu or a smaller fall, (K,).
    """
    loss, active = ray.loss, ray.active
    scale, accepted = torch.ones_like(loss), ~active
    after = loss
    every = rows.read_every(loss)
    for n in range(1, TRIES + 1):  # all rows together: a row that has found its share repeats it unread
        tried = ray.full(update) if n == 1 else ray.loss_at(rows.expand(scale) * update)
        after = torch.where(accepted, after, tried)
        accepted = accepted | (tried <= loss + ARMIJO * scale * slope)
        if n % every == 0 and bool(accepted.all()):
            break
        scale = torch.where(accepted, scale, FACTOR * scale)
    return torch.where(accepted, scale, 0), torch.where(accepted, after, loss)

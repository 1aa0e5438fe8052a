"""The reduction ratio ρ, its rounding, and how it moves the damping λ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

import ahf_cli.optim.rows as rows
from ahf_cli.optim.operators import QuadraticModel

UP, DOWN = 3 / 2, 2 / 3
"""Factors of λ (Martens 2010, §4.1)."""


@dataclass(frozen=True)
class Change:
    """The change of h by a step, and the quadratic model of h."""

    loss: Tensor  # h(θ), (K,)
    loss_after: Tensor  # h(θ + u), (K,)
    loss_at: Callable[[Tensor], Tensor]  # s ↦ h(θ + s), (K, P) → (K,): one more loss evaluation
    model: QuadraticModel
    parameters: Tensor  # θ, (K, P)
    update: Tensor  # u, (K, P)
    scale: Tensor | None  # α where u = αδ, (K,)
    refused: Tensor  # rows in which a line search found no lower h, (K,) bool


@dataclass(frozen=True)
class Reduction:
    """The actual and the predicted change of h, whose quotient is ρ."""

    actual: Tensor  # (K,)
    predicted: Tensor  # (K,)
    products: int = 0  # curvature products used
    ours: bool = False  # whether the ratio is not the paper's, so that `usual` guards it


class ReductionRatio(Protocol):
    """ρ = actual reduction of h / reduction predicted by the model."""

    def __call__(self, change: Change) -> Reduction:
        """Return numerator and denominator of ρ."""
        ...


class RatioAtDirection:
    """ρ = (h(θ+δ) − h(θ)) / q(δ), at the full direction: the order of steps in Algorithm 1."""

    def __call__(self, change: Change) -> Reduction:
        """Compare h and its model at δ."""
        # One more loss: the step itself ends at θ + u, not at θ + δ.
        actual = change.loss_at(change.model.direction) - change.loss
        return Reduction(actual, change.model.along(1.0))


class RatioAtUpdate:
    """ρ = (h(θ+u) − h(θ)) / q(u), at the step taken."""

    def __call__(self, change: Change) -> Reduction:
        """Compare h and its model at u; one product unless u is a multiple of δ."""
        actual = change.loss_after - change.loss
        if change.scale is not None:
            return Reduction(actual, change.model.along(change.scale), ours=True)
        # u is no multiple of δ: no short cut
        return Reduction(actual, change.model.at(change.update), products=1, ours=True)


RatioRounding = Callable[[Reduction, Change], tuple[Tensor, Tensor | None]]
"""(reduction, change) ↦ ρ, and the rows in which ρ is unknown or None for no row; (K,), (K,) bool."""


def printed(reduction: Reduction, change: Change) -> tuple[Tensor, None]:
    """Return ρ as the plain quotient, also where it divides two rounding errors."""
    return reduction.actual / reduction.predicted, None


NEAR = 1e-2
"""A change of h by a larger share is no rounding error; then nothing more is evaluated."""


def guarded(reduction: Reduction, change: Change) -> tuple[Tensor, Tensor]:
    """Return ρ, and the rows in which both changes are at most the rounding r of h.

    r is ten times |h(θ∘(1+εξ)) − h(θ)| with ξ = ±1, and at least ten times ε |h|.  In these rows ρ is no
    measurement.  If |q(δ)| > r, the step was too short to be judged, and the model of so short a step is
    right: ρ = 1, so that λ falls.  It is the limit for u → 0 (Conn, Gould and Toint 2000, §17.4.2).
    Otherwise there is nothing to gain, and ρ is unknown, NaN.
    """
    ratio = reduction.actual / reduction.predicted
    size = torch.maximum(reduction.actual.abs(), reduction.predicted.abs())
    near = size <= NEAR * change.loss.abs()
    if rows.on_host(near) and not bool(near.any()):
        return ratio, near
    rounding = 10 * rounding_of(change)
    lost = near & (size <= rounding)
    gain = change.model.along(1.0).abs() > rounding
    # A refused step has u = 0 because h did not fall: if there was a gain, ρ must raise λ.
    short = lost & gain & ~change.refused
    unknown = lost & ~gain
    return torch.where(unknown, torch.nan, torch.where(short, 1.0, ratio)), unknown


def rounding_of(change: Change) -> Tensor:
    """Return the size of a rounding error of h(θ), (K,): by one loss at θ with its last digits changed."""
    eps = torch.finfo(change.parameters.dtype).eps
    # Fixed signs: a step is a function of its state, and PyTorch's generators do not move.
    source = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, change.parameters.shape[-1:], generator=source) * 2 - 1
    moved = change.loss_at(eps * signs.to(change.parameters) * change.parameters) - change.loss
    return torch.maximum(moved.abs(), eps * change.loss.abs())


def usual(reduction: Reduction, change: Change) -> tuple[Tensor, Tensor | None]:
    """Return `printed` for the paper's ratios, and `guarded` for the ratio at the step made."""
    return (guarded if reduction.ours else printed)(reduction, change)


class DampingRule(Protocol):
    """λ ← rule(λ, ρ, λ₀)."""

    def __call__(self, damping: Tensor, ratio: Tensor, initial: Tensor) -> Tensor:
        """Return the next λ; (K,), (K,), (K,) → (K,)."""
        ...


class ConstantDamping:
    """λ does not change."""

    def __call__(self, damping: Tensor, ratio: Tensor, initial: Tensor) -> Tensor:
        """Return λ itself."""
        return damping


@dataclass(frozen=True)
class LevenbergMarquardt:
    """λ ← 3/2 λ where ρ < ¼ or not finite, 2/3 λ where ρ > ¾, within bounds (Martens 2010, §4.1)."""

    up: float = UP
    down: float = DOWN
    bounds: tuple[float, float] = (1e-10, 1e10)
    relative: bool = False
    """whether the bounds are multiples of λ₀"""

    def __call__(self, damping: Tensor, ratio: Tensor, initial: Tensor) -> Tensor:
        """Return the next λ."""
        # ρ is not finite where h(θ + u) overflows: a step far too long, so λ grows.
        grow = (ratio < 0.25) | ~torch.isfinite(ratio)
        shrink = (ratio > 0.75) & torch.isfinite(ratio)
        scaled = torch.where(grow, self.up * damping, torch.where(shrink, self.down * damping, damping))
        low, high = self.bounds
        if not self.relative:
            return scaled.clamp(low, high)
        return torch.minimum(torch.maximum(scaled, low * initial), high * initial)


@dataclass(frozen=True)
class ScaledLevenbergMarquardt(LevenbergMarquardt):
    """The rule with bounds that are multiples of λ₀, so that the unit of h does not matter."""

    relative: bool = True


def towards(damping: Tensor, initial: Tensor) -> Tensor:
    """Return λ one factor nearer to λ₀, (K,)."""
    back = torch.maximum(DOWN * damping, initial)
    return torch.where(damping > initial, back, torch.minimum(UP * damping, initial))

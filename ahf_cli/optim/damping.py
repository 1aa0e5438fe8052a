"""The reduction ratio ρ, and how it moves the damping λ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ahf_cli.optim.operators import QuadraticModel


@dataclass(frozen=True)
class Change:
    """The change of h by a step, and the quadratic model of h."""

    loss: Tensor  # h(θ), (K,)
    loss_after: Tensor  # h(θ + u), (K,)
    loss_at: Callable[[Tensor], Tensor]  # s ↦ h(θ + s), (K, P) → (K,): one more loss evaluation
    model: QuadraticModel
    update: Tensor  # u, (K, P)
    scale: Tensor | None  # α where u = αδ, (K,)
    refused: Tensor  # rows in which a line search found no lower h, (K,) bool


class ReductionRatio(Protocol):
    """ρ = actual reduction of h / reduction predicted by the model."""

    def __call__(self, change: Change) -> tuple[Tensor, int]:
        """Return ρ, (K,), and the number of curvature products used."""
        ...


class RatioAtDirection:
    """ρ = (h(θ+δ) − h(θ)) / q(δ), at the full direction: the order of steps in Algorithm 1."""

    def __call__(self, change: Change) -> tuple[Tensor, int]:
        """Compare h and its model at δ."""
        # One more loss: the step itself ends at θ + u, not at θ + δ.
        return (change.loss_at(change.model.direction) - change.loss) / change.model.along(1.0), 0


class RatioAtUpdate:
    """ρ = (h(θ+u) − h(θ)) / q(u), at the step taken; 1 where both are within rounding.

    1 is the limit for u → 0, since q has the slope of h (Conn, Gould and Toint 2000, §17.4.2).  The rounded
    quotient, 0/q(u) or 0/0, would raise λ instead, and so shorten the next step.  A step size that falls with
    the length of the direction (Eq. 3) would then hold λ high for good.
    """

    def __call__(self, change: Change) -> tuple[Tensor, int]:
        """Compare h and its model at u; one product unless u is a multiple of δ."""
        actual = change.loss_after - change.loss
        if change.scale is not None:
            predicted, products = change.model.along(change.scale), 0
        else:
            predicted, products = change.model.at(change.update), 1  # u is no multiple of δ: no short cut
        # Ten units of rounding of h: a smaller difference of two losses is noise.
        rounding = 10 * torch.finfo(actual.dtype).eps * change.loss.abs().clamp_min(1)
        # A refused step has u = 0 because h did not fall: there ρ must raise λ.
        lost = (actual.abs() <= rounding) & (predicted.abs() <= rounding) & ~change.refused
        return torch.where(lost, 1.0, actual / predicted), products


class DampingRule(Protocol):
    """λ ← rule(λ, ρ)."""

    def __call__(self, damping: Tensor, ratio: Tensor) -> Tensor:
        """Return the next λ; (K,), (K,) → (K,)."""
        ...


class ConstantDamping:
    """λ does not change."""

    def __call__(self, damping: Tensor, ratio: Tensor) -> Tensor:
        """Return λ itself."""
        return damping


class LevenbergMarquardt:
    """λ ← 3/2 λ where ρ < ¼ or not finite, 2/3 λ where ρ > ¾, within [1e-10, 1e10] (Martens 2010, §4.1)."""

    def __call__(self, damping: Tensor, ratio: Tensor) -> Tensor:
        """Return the next λ."""
        # ρ is not finite where h(θ + u) overflows: a step far too long, so λ grows.
        grow = (ratio < 0.25) | ~torch.isfinite(ratio)
        shrink = (ratio > 0.75) & torch.isfinite(ratio)
        scaled = torch.where(grow, 3 / 2 * damping, torch.where(shrink, 2 / 3 * damping, damping))
        return scaled.clamp(1e-10, 1e10)

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
    """A step's change of h, and its model."""

    loss: Tensor  # h(θ), (K,)
    loss_after: Tensor  # h(θ + u), (K,)
    loss_at: Callable[[Tensor], Tensor]  # s ↦ h(θ + s), (K, P) → (K,): one more loss evaluation
    model: QuadraticModel
    update: Tensor  # u, (K, P)
    scale: Tensor | None  # α where u = αδ, (K,)
    refused: Tensor  # whether a line search found no step that lowers h, (K,) bool


class ReductionRatio(Protocol):
    """ρ = actual reduction of h / reduction predicted by the model."""

    def __call__(self, change: Change) -> tuple[Tensor, int]:
        """Return ρ, (K,), and the number of curvature products that it took."""
        ...


class RatioAtDirection:
    """ρ = (h(θ+δ) − h(θ)) / q(δ): at the full direction, as the order of Algorithm 1 says."""

    def __call__(self, change: Change) -> tuple[Tensor, int]:
        """Compare h and its model at δ."""
        return (change.loss_at(change.model.direction) - change.loss) / change.model.along(1.0), 0


class RatioAtUpdate:
    """ρ = (h(θ+u) − h(θ)) / q(u): at the step that is taken; 1 where neither can be told from rounding.

    1 is the limit for u → 0, since q has the slope of h (Conn, Gould and Toint 2000, §17.4.2).  What rounding
    leaves of the quotient, 0/q(u) or 0/0, would instead raise λ and so shorten the next step: with a step
    size that falls with the direction's length, as Eq. 3 does, λ would never come back.
    """

    def __call__(self, change: Change) -> tuple[Tensor, int]:
        """Compare h and its model at u; one product unless u is a multiple of δ."""
        actual = change.loss_after - change.loss
        if change.scale is not None:
            predicted, products = change.model.along(change.scale), 0
        else:
            predicted, products = change.model.at(change.update), 1
        rounding = 10 * torch.finfo(actual.dtype).eps * change.loss.abs().clamp_min(1)
        lost = (actual.abs() <= rounding) & (predicted.abs() <= rounding) & ~change.refused
        return torch.where(lost, 1.0, actual / predicted), products


class DampingRule(Protocol):
    """λ ← rule(λ, ρ)."""

    def __call__(self, damping: Tensor, ratio: Tensor) -> Tensor:
        """Return the next λ; (K,), (K,) → (K,)."""
        ...


class ConstantDamping:
    """λ stays."""

    def __call__(self, damping: Tensor, ratio: Tensor) -> Tensor:
        """Return λ."""
        return damping


class LevenbergMarquardt:
    """λ ← 3/2 λ where ρ < ¼ or not finite, 2/3 λ where ρ > ¾, within [1e-10, 1e10] (Martens 2010, §4.1)."""

    def __call__(self, damping: Tensor, ratio: Tensor) -> Tensor:
        """Return the next λ."""
        grow = (ratio < 0.25) | ~torch.isfinite(ratio)
        shrink = (ratio > 0.75) & torch.isfinite(ratio)
        scaled = torch.where(grow, 3 / 2 * damping, torch.where(shrink, 2 / 3 * damping, damping))
        return scaled.clamp(1e-10, 1e10)

"""Rules that shorten α until h falls enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ahf_cli.optim import rows
from ahf_cli.optim.newton import LossAt

ARMIJO, FACTOR, TRIES = 1e-2, 0.8, 60
"""The line search's c, the factor of α at each try, and the number of tries (Martens 2010, §4.6)."""


@dataclass(frozen=True)
class Ray:
    """A wanted update u, and h along it."""

    loss_at: LossAt  # h around θ
    loss: Tensor  # h(θ), (K,)
    gradient: Tensor  # g, (K, P)
    active: Tensor  # rows that take part, (K,) bool


class LineSearch(Protocol):
    """Returns α and u as it leaves them, and h(θ + u)."""

    def __call__(self, alpha: Tensor, update: Tensor, ray: Ray) -> tuple[Tensor, Tensor, Tensor]:
        """Search along u; (K,), (K, P) → (K,), (K, P), (K,)."""
        ...


def full_step(alpha: Tensor, update: Tensor, ray: Ray) -> tuple[Tensor, Tensor, Tensor]:
    """u as it is."""
    return alpha, update, ray.loss_at(update)


def armijo(alpha: Tensor, update: Tensor, ray: Ray) -> tuple[Tensor, Tensor, Tensor]:
    """The largest share s of 1, 0.8, 0.8², … with h(θ + su) ≤ h(θ) + c s gᵀu; 0 where none of 60 is."""
    share, loss_after = armijo_share(ray, update, rows.dot(ray.gradient, update))
    return share * alpha, rows.expand(share) * update, loss_after


def armijo_share(ray: Ray, update: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share s of an update and h there, (K,); rows that are not active get 1.

    Args:
        ray: h around θ.
        update: u, (K, P).
        slope: gᵀu, (K,).
    """
    loss, active = ray.loss, ray.active
    scale, accepted = torch.ones_like(loss), ~active
    after = loss
    for _ in range(TRIES):
        tried = ray.loss_at(rows.expand(scale) * update)
        after = torch.where(accepted, after, tried)
        accepted = accepted | (tried <= loss + ARMIJO * scale * slope)
        if bool(accepted.all()):
            return scale, after
        scale = torch.where(accepted, scale, FACTOR * scale)
    return torch.where(accepted, scale, 0), torch.where(accepted, after, loss)

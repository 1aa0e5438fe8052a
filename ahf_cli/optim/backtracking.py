"""Between CG and the step (Martens 2010): an earlier iterate where it is better, and a line search."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile

import torch
from torch import Tensor

from ahf_cli.optim import rows
from ahf_cli.optim.cg import CGResult

LossAt = Callable[[Tensor], Tensor]
"""s ↦ h(θ + s) for each row; (K, P) → (K,)."""
ARMIJO, FACTOR, TRIES = 1e-2, 0.8, 60
"""The line search's c, what it multiplies α by, and how often it tries (Martens 2010, §4.6)."""


def kept_iterates(limit: int) -> frozenset[int]:
    """Return ⌈5 · 1.3ʲ⌉ for j = 0, 1, … up to a limit: the iterates that are kept (Martens 2010, §4.6)."""
    numbers = (math.ceil(5 * 1.3**j) for j in range(10_000))
    return frozenset(takewhile(lambda n: n <= limit, numbers))


def backtrack(result: CGResult, loss_at: LossAt) -> CGResult:
    """Go back from the last iterate of CG over the kept ones for as long as h falls; row by row.

    CG lowers the model, not h: where the model is trusted too far, an earlier iterate is the better step.
    """
    solution, residual = result.solution, result.residual
    best, going = loss_at(solution), torch.ones_like(result.stop, dtype=torch.bool)
    for x, r in reversed(result.kept):
        loss = loss_at(x)
        going = going & ((loss <= best) | ~torch.isfinite(best))
        if not bool(going.any()):
            break
        solution, residual = rows.where(going, x, solution), rows.where(going, r, residual)
        best = torch.where(going, loss, best)
    return replace(result, solution=solution, residual=residual)


def armijo(
    loss_at: LossAt, update: Tensor, loss: Tensor, slope: Tensor, active: Tensor
) -> tuple[Tensor, Tensor]:
    """Search the largest α of 1, 0.8, 0.8², … with h(θ + αu) ≤ h(θ) + c α gᵀu; return α and h there, (K,).

    Where none of 60 is, α is 0.

    Args:
        loss_at: h around θ.
        update: u, (K, P).
        loss: h(θ), (K,).
        slope: gᵀu, (K,).
        active: rows that ask, (K,) bool; the others get 1.
    """
    scale, accepted = torch.ones_like(loss), ~active
    after = loss
    for _ in range(TRIES):
        tried = loss_at(rows.expand(scale) * update)
        after = torch.where(accepted, after, tried)
        accepted = accepted | (tried <= loss + ARMIJO * scale * slope)
        if bool(accepted.all()):
            return scale, after
        scale = torch.where(accepted, scale, FACTOR * scale)
    return torch.where(accepted, scale, 0), torch.where(accepted, after, loss)

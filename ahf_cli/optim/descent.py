"""Directions of descent: the approximate Newton direction δ."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ahf_cli.optim import rows
from ahf_cli.optim.cg import CGResult, Rules, conjugate_gradient
from ahf_cli.optim.curvature import Operator


@dataclass(frozen=True)
class LinearSystem:
    """(B + λI) δ = −g for each row, and what helps to solve it."""

    operator: Operator  # v ↦ B v
    gradient: Tensor  # g, (K, P)
    damping: Tensor  # λ, (K,)
    previous: Tensor  # the last direction, (K, P)
    active: Tensor  # rows that take part, (K,) bool
    preconditioner: Tensor | None = None  # the diagonal of M, (K, P)


class LinearSolver(Protocol):
    """Finds δ with (B + λI) δ ≈ −g."""

    def __call__(self, system: LinearSystem) -> CGResult:
        """Solve for each row, given the previous direction."""
        ...


@dataclass(frozen=True)
class TruncatedNewton:
    """δ from a truncated run of CG, started at a multiple of the previous direction (Martens 2010, §4.8)."""

    rules: Rules
    max_iterations: int = 50
    warm_start_decay: float = 0.95
    keep: Collection[int] = ()
    """iterates to return for backtracking"""
    check_every: int | None = None
    """iterations between host reads; by default every one on a CPU, where they cost nothing, and every fifth
    on a GPU, where the number is not measured"""

    def __call__(self, system: LinearSystem) -> CGResult:
        """Solve (B + λI) δ = −g from x₀ = decay · δ_previous."""
        active, gradient = system.active, system.gradient
        start = rows.where(active, self.warm_start_decay * system.previous, gradient.new_zeros(()))
        every = self.check_every or (5 if gradient.is_cuda else 1)
        return conjugate_gradient(
            system.operator, system.damping, gradient, start, self.rules, self.max_iterations, active, every,
            preconditioner=system.preconditioner, keep=self.keep,
        )  # fmt: skip

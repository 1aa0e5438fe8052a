"""Directions of descent: the approximate Newton direction δ."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ahf_cli.optim import rows
from ahf_cli.optim.cg import CGResult, Rules, conjugate_gradient
from ahf_cli.optim.curvature import Operator


class LinearSolver(Protocol):
    """Finds δ with (B + λI) δ ≈ −g."""

    def __call__(
        self,
        operator: Operator,
        gradient: Tensor,
        damping: Tensor,
        previous: Tensor,
        active: Tensor,
        preconditioner: Tensor | None = None,
    ) -> CGResult:
        """Solve for each row, given the previous direction; (K, P), (K,), (K, P), (K,) → directions."""
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

    def __call__(
        self,
        operator: Operator,
        gradient: Tensor,
        damping: Tensor,
        previous: Tensor,
        active: Tensor,
        preconditioner: Tensor | None = None,
    ) -> CGResult:
        """Solve (B + λI) δ = −g from x₀ = decay · δ_previous."""
        start = rows.where(active, self.warm_start_decay * previous, previous.new_zeros(()))
        every = self.check_every or (5 if gradient.is_cuda else 1)
        return conjugate_gradient(
            operator, damping, gradient, start, self.rules, self.max_iterations, active, every,
            preconditioner=preconditioner, keep=self.keep,
        )  # fmt: skip

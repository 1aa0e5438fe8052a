"""The approximate Newton direction δ: truncated CG on (B + λI) δ = −g, and the parts around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Protocol

import torch
from torch import Tensor

import ahf_cli.optim.rows as rows
from ahf_cli.optim.cg import (
    CGResult,
    ForcingRules,
    RelativeMartensRules,
    Rules,
    Stop,
    conjugate_gradient,
    no_selection,
)
from ahf_cli.optim.moments import Values
from ahf_cli.optim.operators import Operator
from ahf_cli.optim.replay import replayed
from ahf_cli.optim.scaling import Scaling
from ahf_cli.optim.trust_region import steihaug

LossAt = Callable[[Tensor], Tensor]
"""s ↦ h(θ + s) for each row; (K, P) → (K,)."""


@dataclass(frozen=True)
class LinearSystem:
    """(B + λI) δ = −g for each row, with a preconditioner and a start."""

    operator: Operator  # v ↦ B v
    gradient: Tensor  # g, (K, P)
    damping: Tensor  # λ, (K,)
    previous: Tensor  # the last direction, (K, P)
    active: Tensor  # rows that take part, (K,) bool
    preconditioner: Scaling | None = None  # M
    first: Tensor | None = None  # ‖g₀‖² of the first gradient, (K,); 0 at the first step
    select: Callable[[Tensor], Operator | None] = no_selection  # rows ↦ the operator of these rows, or None
    mean: Tensor | None = None  # a moving mean of g, (K, P), for `Direct`
    values: Values = field(default_factory=dict)  # hyperparameters


class LinearSolver(Protocol):
    """A method that finds δ with (B + λI) δ ≈ −g."""

    def __call__(self, system: LinearSystem) -> CGResult:
        """Solve for each row, from the previous direction."""
        ...


@dataclass(frozen=True)
class TruncatedNewton:
    """δ from a truncated run of CG, started at a multiple of the previous direction (Martens 2010, §4.8)."""

    rules: Rules
    max_iterations: int = 50
    warm_start_decay: float = 0.95
    keep: Collection[int] = ()
    """numbers of iterations whose iterates are returned as well"""
    check_every: int | None = None
    """iterations between host reads; default: `rows.read_every`"""

    def __call__(self, system: LinearSystem) -> CGResult:
        """Solve (B + λI) δ = −g from x₀ = decay · δ_previous."""
        gradient = system.gradient
        unit = self._unit(gradient)
        if unit != 1:
            first = None if system.first is None else system.first / unit / unit
            scaled = replace(system, gradient=gradient / unit, previous=system.previous / unit, first=first)
            return self(scaled).times(unit)
        rules = ForcingRules(system.first) if isinstance(self.rules, ForcingRules) else self.rules
        every = self.check_every or rows.read_every(gradient)
        return self._solve(system, replayed(system.operator, gradient.device), rules, every)

    def _solve(self, system: LinearSystem, operator: Operator, rules: Rules, every: int) -> CGResult:
        active, gradient = system.active, system.gradient
        # A diverged row starts at 0: its last direction may hold numbers that are not finite.
        start = rows.where(active, self.warm_start_decay * system.previous, gradient.new_zeros(()))

        def select(trials: Tensor) -> Operator | None:
            own = system.select(trials)
            return None if own is None else replayed(own, gradient.device)

        return conjugate_gradient(
            operator, system.damping, gradient, start, rules, self.max_iterations, active, every,
            preconditioner=system.preconditioner, keep=self.keep, select=select,
        )  # fmt: skip

    def _unit(self, gradient: Tensor) -> float:
        """Return the power of 2 that divides g for CG: squares of large or small g leave the dtype."""
        if not isinstance(self.rules, RelativeMartensRules):
            return 1.0
        largest = float(gradient.abs().max()) if gradient.numel() else 0.0
        if largest == 0 or not math.isfinite(largest) or 1e-12 < largest < 1e12:
            return 1.0
        return float(2.0 ** math.floor(math.log2(largest)))


class TrustRegion(TruncatedNewton):
    """δ minimizes the undamped model within ‖δ‖ ≤ ‖g‖/λ approximately, by Steihaug's CG from 0."""

    def _solve(self, system: LinearSystem, operator: Operator, rules: Rules, every: int) -> CGResult:
        return steihaug(
            operator, system.damping, system.gradient, rules, self.max_iterations, system.active, every,
            self.keep,
        )  # fmt: skip


class Gradient(TruncatedNewton):
    """δ = −g/λ, the damped system without B; one product gives q(δ)."""

    def _solve(self, system: LinearSystem, operator: Operator, rules: Rules, every: int) -> CGResult:
        return measured(system, operator, -system.gradient / rows.expand(system.damping))


def measured(system: LinearSystem, operator: Operator, solution: Tensor) -> CGResult:
    """Return a direction that no iteration found, with its residual by one product."""
    shift = rows.expand(system.damping) * solution
    residual = -system.gradient - shift - operator(solution)
    none = torch.zeros_like(system.active, dtype=torch.int64)
    return CGResult(
        solution, residual, none, none + system.active, none + int(Stop.INACTIVE),
        rows.dot(residual, solution),
    )  # fmt: skip


@dataclass(frozen=True)
class Direct:
    """δ = −M⁻¹ m, with the moving mean m of the gradient and a preconditioner M ≈ B + λI."""

    measured: bool
    """whether one product gives the residual, and so q(δ), which only a rule for λ needs"""

    def __call__(self, system: LinearSystem) -> CGResult:
        """Return δ, (K, P)."""
        assert system.preconditioner is not None and system.mean is not None
        solution = -system.preconditioner.solve(system.mean)
        if self.measured:
            return measured(system, system.operator, solution)
        none, unknown = (
            torch.zeros_like(system.active, dtype=torch.int64),
            torch.full_like(system.damping, torch.nan),
        )
        return CGResult(solution, rows.expand(unknown), none, none, none + int(Stop.INACTIVE), unknown)


class Spring(TruncatedNewton):
    """(B + λI) δ = −g + λ μ δ_previous: the damping draws towards μ times the last direction, not to 0.

    After Goldshlager et al. (2024); μ is the hyperparameter `recall`.
    """

    def __call__(self, system: LinearSystem) -> CGResult:
        """Solve the system by CG."""
        pull = rows.expand(system.damping * system.values["recall"]) * system.previous
        pull = rows.where(system.active, pull, torch.zeros_like(pull))
        found = super().__call__(replace(system, gradient=system.gradient - pull))

        def along(x: Tensor, own: Tensor) -> Tensor:
            """Return rᵀx for r = −g − (B + λI)x."""
            return own - rows.dot(pull, x)

        return replace(
            found, residual=found.residual - pull, residual_along=along(found.solution, found.residual_along),
            kept=tuple((x, along(x, own)) for x, own in found.kept),
        )  # fmt: skip


class IterateChoice(Protocol):
    """A choice of the iterate of CG that becomes the direction."""

    def kept(self, limit: int) -> Collection[int]:
        """Return the iterations whose iterates the choice needs, up to a limit."""
        ...

    def __call__(self, result: CGResult, loss_at: LossAt) -> CGResult:
        """Return the result with the chosen iterate as its solution."""
        ...


class LastIterate:
    """The last iterate becomes δ."""

    def kept(self, limit: int) -> Collection[int]:
        """Return no iteration: the last iterate is always there."""
        return ()

    def __call__(self, result: CGResult, loss_at: LossAt) -> CGResult:
        """Return the result as it is."""
        return result


class Backtracking:
    """An earlier iterate with lower h becomes δ: CG lowers the model q, not h (Martens 2010, §4.6)."""

    def kept(self, limit: int) -> Collection[int]:
        """Return ⌈5 · 1.3ʲ⌉ for j = 0, 1, … up to the limit."""
        # `takewhile` ends the sequence at the limit, long before the range ends.
        numbers = (math.ceil(5 * 1.3**j) for j in range(10_000))
        return frozenset(takewhile(lambda n: n <= limit, numbers))

    def __call__(self, result: CGResult, loss_at: LossAt) -> CGResult:
        """Go back from the last iterate over the kept ones while h falls, row by row."""
        solution, along = result.solution, result.residual_along
        best, going = loss_at(solution), torch.ones_like(result.stop, dtype=torch.bool)
        every = rows.read_every(best)
        for n, (x, own) in enumerate(reversed(result.kept), start=1):
            loss = loss_at(x)
            # A comparison with NaN is false: where h is not finite the way back must continue.
            going = going & ((loss <= best) | ~torch.isfinite(best))
            if n % every == 0 and not bool(going.any()):
                break
            solution, along = rows.where(going, x, solution), torch.where(going, own, along)
            best = torch.where(going, loss, best)
        return replace(result, solution=solution, residual_along=along, kept=(), loss=best)

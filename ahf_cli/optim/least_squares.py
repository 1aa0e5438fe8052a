"""Levenberg-Marquardt for h = ½ ‖ρ(θ)‖², with the whole Jacobian of the residuals ρ, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, cast

import torch
from torch import Tensor

import ahf_cli.optim.rows as rows
from ahf_cli.optim.objective import Objective
from ahf_cli.optim.precision import in_full_precision
from ahf_cli.optim.state import FactoredStep, State, StepInfo, begin, factored_step

TRIES = 10
"""Tries of one step: λ doubles its growth at each, so that the last one is 2⁴⁵ times the first."""
PROBE = 0.1
"""Share s of the direction at which the second derivative of ρ along it is measured."""
LARGEST = 0.75
"""Largest ratio 2 ‖a‖/‖δ‖ of an acceleration that is used (Transtrum and Sethna 2012)."""


class LeastSquaresObjective(Objective, Protocol):
    """h = ½ ‖ρ‖² on one batch."""

    def residuals(self, parameters: Tensor) -> Tensor:
        """ρ for each row; (K, P) → (K, M)."""
        ...

    def jacobian(self, parameters: Tensor, row: int) -> Tensor:
        """∂ρ/∂θ of one row; (K, P) → (M, P)."""
        ...


@dataclass(frozen=True)
class NormalEquations:
    """(AᵀA + λI) s = −Aᵀ b for any b and λ, by a Cholesky factor of the smaller of AᵀA and AAᵀ."""

    jacobian: Tensor  # A, (M, P)

    @cached_property
    def wide(self) -> bool:
        """Whether A has fewer rows than columns, so that s = −Aᵀ (AAᵀ + λI)⁻¹ b is cheaper."""
        return self.jacobian.shape[0] < self.jacobian.shape[1]

    @cached_property
    def gram(self) -> Tensor:
        """The smaller of AᵀA and AAᵀ."""
        return self.jacobian @ self.jacobian.T if self.wide else self.jacobian.T @ self.jacobian

    @cached_property
    def floor(self) -> Tensor:
        """Smallest useful λ: below it the rounding of the product is larger."""
        return torch.finfo(self.gram.dtype).eps * self.gram.diagonal().max()

    def factor(self, damping: Tensor) -> Tensor | None:
        """Return the Cholesky factor at λ; None if the matrix is not positive definite to rounding."""
        shifted = self.gram.clone()
        shifted.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        return None if failed else factor

    def solve(self, factor: Tensor, b: Tensor) -> Tensor:
        """Return s; b, (M,) → (P,)."""
        if self.wide:
            return -self.jacobian.T @ torch.cholesky_solve(b[:, None], factor)[:, 0]
        return -torch.cholesky_solve((self.jacobian.T @ b)[:, None], factor)[:, 0]


@dataclass
class _Tries:
    """The tries of one step, for K rows."""

    damping: Tensor  # λ of the next try, (K,)
    growth: Tensor  # ν, (K,)
    solved_with: Tensor  # λ of the last system, (K,)
    update: Tensor  # the accepted u, (K, P); 0 before
    after: Tensor  # h(θ + u), (K,)
    ratio: Tensor  # ρ of the last try, (K,)
    model: Tensor  # q(δ) of the last try, (K,)
    open: Tensor  # rows that still try, (K,) bool
    losses: int = 0


@dataclass(frozen=True)
class DampedLeastSquares:
    """δ from (AᵀA + λI) δ = −Aᵀρ, tried with growing λ until h falls.

    λ ← λ max(1/3, 1 − (2r − 1)³) with the ratio r = (h(θ+u) − h(θ)) / q(δ) after a step that lowers h.
    Another one is not taken: λ ← ν λ and ν ← 2ν with ν = 2 at first, and δ is found again.  After ten tries
    θ and λ stay.  Sources: Marquardt 1963; Nielsen 1999.

    Args:
        accelerated: u = δ + ½a where 2 ‖a‖ ≤ 0.75 ‖δ‖, else u = δ (Transtrum and Sethna 2012).  This geodesic
            acceleration a solves (AᵀA + λI) a = −Aᵀρ″, with ρ″ the second derivative of ρ along δ.
    """

    accelerated: bool = False

    independent_batch = False
    curvature_batches = 1

    def init(self, parameters: Tensor, hyperparameters: Mapping[str, Tensor | float]) -> State:
        """Make the state of K trials before their first step; `damping` is λ₀."""
        return begin(parameters, hyperparameters, {})

    @in_full_precision
    def step(
        self, state: State, objective: Objective, curvature_objective: Objective | None = None
    ) -> tuple[State, StepInfo]:
        """Take one step in every active row; raises ValueError unless h is a sum of squares."""
        if not hasattr(objective, "jacobian"):
            raise ValueError("lm needs the residuals of one process: it runs on one rank, on a model")
        h, theta = cast("LeastSquaresObjective", objective), state.parameters
        residuals = h.residuals(theta)
        loss = _half_square(residuals)
        open_ = state.active & torch.isfinite(loss)
        systems = {k: NormalEquations(h.jacobian(theta, k)) for k in torch.nonzero(open_).flatten().tolist()}
        gradient = torch.zeros_like(theta)
        for k, system in systems.items():
            gradient[k] = system.jacobian.T @ residuals[k]
        nan = torch.full_like(loss, torch.nan)
        lowest = torch.stack(
            [systems[k].floor if k in systems else loss.new_zeros(()) for k in range(len(loss))]
        )
        start = torch.maximum(state.damping, lowest)
        found = _Tries(
            start, torch.full_like(loss, 2.0), start, torch.zeros_like(theta), loss.clone(), nan, nan.clone(),
            open_,
        )  # fmt: skip
        for _ in range(TRIES):
            if not bool(found.open.any()):
                break
            self._try(h, theta, residuals, systems, found)
        damping = torch.where(found.open, state.damping, found.damping)
        smaller = max((min(s.jacobian.shape) for s in systems.values()), default=0)
        own = FactoredStep(
            loss, gradient, found.update, found.after, found.solved_with, damping, found.ratio, found.model,
            products=smaller // 2, losses=found.losses,
        )  # fmt: skip
        info = factored_step(state, h.layout, own)
        return state.moved(theta + found.update, found.update, damping, {}, info.finite), info

    def _try(
        self, h: LeastSquaresObjective, theta: Tensor, residuals: Tensor,
        systems: Mapping[int, NormalEquations], found: _Tries,
    ) -> None:  # fmt: skip
        """Solve at each open row's λ, and accept the rows whose h falls."""
        update, image = torch.zeros_like(theta), torch.zeros_like(residuals)
        factors = {}
        for k, system in systems.items():
            factor = system.factor(found.damping[k]) if bool(found.open[k]) else None
            if factor is not None:
                factors[k] = factor
                update[k] = system.solve(factor, residuals[k])
                image[k] = system.jacobian @ update[k]
        # q(δ) = gᵀδ + ½ ‖Aδ‖²
        model = (residuals * image).sum(dim=-1) + 0.5 * image.square().sum(dim=-1)
        if self.accelerated:
            bend = 2 / PROBE * ((h.residuals(theta + PROBE * update) - residuals) / PROBE - image)
            found.losses += 1
            for k, factor in factors.items():
                acceleration = systems[k].solve(factor, bend[k])
                if 2 * acceleration.norm() <= LARGEST * update[k].norm():
                    update[k] += 0.5 * acceleration
        after = _half_square(h.residuals(theta + update))
        found.losses += 1
        before, was_open = _half_square(residuals), found.open
        ratio = (after - before) / model
        taken = was_open & (after < before)
        found.solved_with = torch.where(was_open, found.damping, found.solved_with)
        found.ratio = torch.where(was_open, ratio, found.ratio)
        found.model = torch.where(was_open, model, found.model)
        found.update = rows.where(taken, update, found.update)
        found.after = torch.where(taken, after, found.after)
        shrink = (1 - (2 * ratio - 1) ** 3).clamp(1 / 3, 2)
        grown = torch.where(was_open, found.growth * found.damping, found.damping)
        found.damping = torch.where(taken, shrink * found.damping, grown)
        found.growth = torch.where(was_open & ~taken, 2 * found.growth, found.growth)
        found.open = was_open & ~taken


def _half_square(residuals: Tensor) -> Tensor:
    """Return ½ ‖ρ‖² of each row; (K, M) → (K,)."""
    return 0.5 * residuals.square().sum(dim=-1)


lm = DampedLeastSquares()
lm_geodesic = DampedLeastSquares(accelerated=True)

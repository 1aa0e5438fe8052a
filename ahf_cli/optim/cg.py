"""Conjugate gradient (CG) for K symmetric systems at once, and the rules that stop it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

import ahf_cli.optim.rows as rows
from ahf_cli.optim.operators import Operator, shifted
from ahf_cli.optim.scaling import DiagonalScaling, Scaling

Dot = Callable[[Tensor, Tensor], Tensor]
"""⟨a_k, b_k⟩ of each row; (K, …), (K, …) → (K,)."""
Select = Callable[[Tensor], Operator | None]
"""Numbers of rows, (k,) int64 ↦ the operator v ↦ B v of these rows alone, or None."""
CROWDED = 0.75
"""Share of active rows at or below which CG goes on with these rows alone."""


def no_selection(trials: Tensor) -> None:
    """Return None: the operator has no part for some rows."""


class Stop(IntEnum):
    """The reason for which CG stopped in a row."""

    INACTIVE = 0
    """the row was not active"""
    MAX_ITERATIONS = 1
    RESIDUAL = 2
    NEGATIVE_CURVATURE = 3
    PROGRESS = 4
    NOT_FINITE = 5
    BOUNDARY = 6
    """the next iterate is outside the trust region"""


class Rules(Protocol):
    """Rules by which CG stops, and treats negative curvature."""

    def residual_tolerance(self, squared: Tensor) -> Tensor:
        """Return the limit of ‖r‖² for ‖g‖²: an iteration begins only above it; (K,) → (K,)."""
        ...

    def breaks_down(self, curvature: Tensor) -> Tensor:
        """Return the rows whose curvature dᵀ(B+λI)d forbids the iteration; (K,) → (K,) bool."""
        ...

    def progress_stop(self, phi: list[Tensor]) -> Tensor | None:
        """Return the rows in which φ(x₀), …, φ(x_n) improves too slowly, (K,) bool.

        None stands for too few iterations to judge.
        """
        ...


class MartensRules:
    """Stop at negative curvature, and at slow relative progress (Martens 2010, §4.4)."""

    def residual_tolerance(self, squared: Tensor) -> Tensor:
        """Return 1e-30 in float64 and 1e-20 in other dtypes."""
        return torch.full_like(squared, 1e-30 if squared.dtype == torch.float64 else 1e-20)

    def breaks_down(self, curvature: Tensor) -> Tensor:
        """Return the rows with dᵀ(B+λI)d ≤ 0."""
        return curvature <= 0

    def progress_stop(self, phi: list[Tensor]) -> Tensor | None:
        """Return the rows with φ_n < 0 and (φ_n − φ_{n−k})/φ_n < k·5e-4; k = max(10, ⌈n/10⌉), n > k."""
        n = len(phi) - 1
        k = max(10, -(-n // 10))  # ⌈n/10⌉ in integers
        if n <= k:
            return None
        # A start from the last direction may have φ > 0: there slow progress does not yet mean convergence.
        return (phi[n] < 0) & ((phi[n] - phi[n - k]) / phi[n] < k * 5e-4)


class RelativeMartensRules(MartensRules):
    """Martens' rules with ‖r‖ ≤ ε ‖g‖ as the limit of the residual, so that the unit of h does not matter."""

    def breaks_down(self, curvature: Tensor) -> Tensor:
        """Return the rows with dᵀ(B+λI)d ≤ 0 or not finite, as at the corner of a norm."""
        return ~(curvature > 0) | ~torch.isfinite(curvature)

    def residual_tolerance(self, squared: Tensor) -> Tensor:
        """Return ε² ‖g‖²."""
        eps: float = torch.finfo(squared.dtype).eps
        return eps * eps * squared


class ForcingRules(RelativeMartensRules):
    """Stop at ‖r‖ ≤ min(½, √(‖g‖/‖g₀‖)) ‖g‖ alone, after Dembo, Eisenstat and Steihaug (1982).

    Args:
        first: ‖g₀‖² of the first gradient, (K,); 0 or None for the present one.
    """

    def __init__(self, first: Tensor | None = None):
        self.first = first

    def residual_tolerance(self, squared: Tensor) -> Tensor:
        """Return the square of the limit."""
        first = squared if self.first is None else torch.where(self.first > 0, self.first, squared)
        share = (squared / first) ** 0.25
        return share.clamp_max(0.5).square() * squared

    def progress_stop(self, phi: list[Tensor]) -> None:
        """Return None: only the residual counts."""


@dataclass(frozen=True)
class CGResult:
    """The result of CG, row by row."""

    solution: Tensor  # x, (K, P)
    residual: Tensor  # r = b − (B + λI)x, (K, P), by recurrence
    iterations: Tensor  # updates of x, (K,) int64
    products: Tensor  # curvature products, (K,) int64
    stop: Tensor  # `Stop` codes, (K,) int64
    residual_along: Tensor  # rᵀx, (K,)
    kept: tuple[tuple[Tensor, Tensor], ...] = ()  # x, (K, P), and rᵀx, (K,), of the iterates in `keep`
    loss: Tensor | None = None  # h(θ + x), (K,), if a choice of the iterate evaluated it

    def times(self, unit: float) -> CGResult:
        """Return the result for a gradient that is `unit` times as long."""
        # One factor after the other: its square may leave the dtype.
        return replace(
            self, solution=self.solution * unit, residual=self.residual * unit,
            residual_along=self.residual_along * unit * unit,
            kept=tuple((x * unit, along * unit * unit) for x, along in self.kept),
        )  # fmt: skip


@dataclass
class _Iterate:
    """The running state of CG in some rows.  Stopped rows are frozen; x, r and d may change in place."""

    system: Operator  # v ↦ (B + λI) v
    damping: Tensor  # λ
    scaling: Scaling | None  # the preconditioner
    x: Tensor
    r: Tensor
    d: Tensor
    rr: Tensor  # rᵀr
    rz: Tensor  # rᵀM⁻¹r
    slope: Tensor  # dᵀr, which equals rᵀM⁻¹r but for rounding
    phi: list[Tensor]
    active: Tensor
    whole: bool  # every row is active, as the host knows; False on a GPU, to save a host read
    stop: Tensor
    tolerance: Tensor  # limit of rᵀr
    iterations: Tensor
    products: Tensor
    trials: Tensor  # numbers of these rows among all

    def finish(self, mask: Tensor, reason: Stop) -> None:
        """Stop the active rows of the mask for a reason."""
        if rows.on_host(mask) and not bool(mask.any()):
            return  # on a CPU this read costs less than the three masks below
        mask = mask & self.active
        self.stop = torch.where(mask, int(reason), self.stop)
        self.active = self.active & ~mask
        self.whole = False

    def alone(self, count: int, select: Select) -> _Iterate:
        """Return the state of the `count` active rows, or this one if they have no operator of their own."""
        going = self.active.long().argsort(descending=True, stable=True)[:count]
        operator = select(self.trials[going])
        if operator is None:
            return self
        own = {name: value[going] for name, value in vars(self).items() if isinstance(value, Tensor)}
        phi = list(torch.stack(self.phi)[:, going].unbind())
        whole, system = rows.on_host(going), shifted(operator, own["damping"])
        scaling = None if self.scaling is None else self.scaling.select(going)
        return replace(self, **own, system=system, scaling=scaling, phi=phi, whole=whole)

    def put(self, part: _Iterate) -> None:
        """Write the results of some rows into those of all."""
        if part is self:
            return
        for name in ("x", "r", "stop", "iterations", "products"):
            setattr(self, name, getattr(self, name).index_copy(0, part.trials, getattr(part, name)))


def conjugate_gradient(
    operator: Operator,
    damping: Tensor,
    gradient: Tensor,
    start: Tensor,
    rules: Rules,
    max_iterations: int = 50,
    active: Tensor | None = None,
    check_every: int = 1,
    dot: Dot = rows.dot,
    preconditioner: Scaling | Tensor | None = None,
    keep: Collection[int] = (),
    select: Select = no_selection,
) -> CGResult:
    """Solve (B + λI) x = −g approximately for each row by conjugate gradient from x₀.

    An iteration takes one product; a start x₀ ≠ 0 takes one more.  φ(x) = ½ xᵀ(B+λI)x + gᵀx = ½ (gᵀx − xᵀr)
    is updated from scalars alone: φ(x + αd) = φ(x) − α dᵀr + ½ α² dᵀ(B+λI)d.  A row that stops is frozen.
    The host reads once in `check_every` iterations how many rows are active.  If they are three quarters of
    the rows at most, the active rows go on alone.  Neither changes the result but for rounding.

    Args:
        operator: v ↦ B v, (K, P) → (K, P), symmetric in each row.
        damping: λ > 0, (K,).
        gradient: g, (K, P).
        start: x₀, (K, P).
        rules: stopping, and treatment of negative curvature.
        max_iterations: limit of updates of x, ≥ 1.
        active: rows that take part, (K,) bool; all by default.
        check_every: iterations between two host reads of the active rows, ≥ 1.
        dot: inner product of each row; another one serves vectors that are given by coordinates.
        preconditioner: M > 0, or its diagonal (K, P), for CG in the inner product of M⁻¹ (Hestenes and
            Stiefel 1952; Shewchuk 1994, B3).  Residuals and their stopping rule do not change.
        keep: numbers of iterations after which x and rᵀx are returned as well.
        select: gives the operator of some rows alone.
    """
    scaling = DiagonalScaling(preconditioner) if isinstance(preconditioner, Tensor) else preconditioner
    it = every = _begin(shifted(operator, damping), damping, gradient, start, rules, active, dot, scaling)
    kept = []
    for n in range(max_iterations):
        it.finish(it.rr <= it.tolerance, Stop.RESIDUAL)
        if not it.whole and n % check_every == 0:
            count = int(it.active.sum())
            if not count:
                break
            if count <= CROWDED * len(it.active):
                every.put(it)
                it = it.alone(count, select)
        _iterate(it, rules, dot, first=n == 0)
        if n + 1 in keep:
            every.put(it)
            # A clone: the next iteration may write into x.
            kept.append((every.x.clone(), dot(every.r, every.x)))
    it.finish(it.active, Stop.MAX_ITERATIONS)
    every.put(it)
    return CGResult(
        every.x, every.r, every.iterations, every.products, every.stop, dot(every.r, every.x), tuple(kept)
    )


def _begin(
    system: Operator,
    damping: Tensor,
    gradient: Tensor,
    start: Tensor,
    rules: Rules,
    active: Tensor | None,
    dot: Dot,
    scaling: Scaling | None,
) -> _Iterate:
    trials = torch.arange(gradient.shape[0], device=gradient.device)
    warm = start.ne(0).any(dim=-1)
    r = -gradient
    if bool(warm.any()):  # else (B + λI) x₀ = 0 without a product
        r = torch.where(rows.expand(warm), r - system(start), r)
    active = torch.ones_like(warm) if active is None else active
    phi = 0.5 * (dot(gradient, start) - dot(start, r))
    rr = dot(r, r)
    d = r.clone() if scaling is None else scaling.solve(r)
    rz = rr if scaling is None else dot(r, d)
    zeros = torch.zeros_like(trials)
    return _Iterate(
        system=system, damping=damping, scaling=scaling, x=start.clone(), r=r, d=d, rr=rr, rz=rz, slope=rz,
        phi=[phi], active=active, whole=rows.on_host(active) and bool(active.all()),
        stop=zeros, tolerance=rules.residual_tolerance(dot(gradient, gradient)),
        iterations=zeros, products=(warm & active).long(), trials=trials,
    )  # fmt: skip


def _iterate(it: _Iterate, rules: Rules, dot: Dot, first: bool) -> None:
    """Update x once in every active row, and stop the rows that are done."""
    image = it.system(it.d)
    curvature = dot(it.d, image)
    it.products = it.products + it.active
    length = it.rz / curvature
    moves = it.active  # before the stop below: in the first iteration broken rows move as well
    broken = rules.breaks_down(curvature)
    if first:
        # Without one update CG has no new iterate: minimize along d₀ with B = 0.  For M = I it is the damped
        # steepest-descent step d₀/λ; in general it does not depend on the unit of M.
        squared = dot(it.d, it.d)
        ratio = torch.where(squared > 0, it.rz / squared, torch.ones_like(squared))
        length = torch.where(broken, ratio / it.damping, length)
    it.finish(broken, Stop.NEGATIVE_CURVATURE)
    going = it.active
    if not first:
        moves = going
    step = rows.expand(length)
    it.x = _add(it.x, it.d, step, 1, moves, it.whole)
    it.r = _add(it.r, image, step, -1, moves, it.whole)
    rr = dot(it.r, it.r)
    z = it.r if it.scaling is None else it.scaling.solve(it.r)
    rz = rr if it.scaling is None else dot(it.r, z)
    conjugation = rz / it.rz
    it.d = _combine(z, rows.expand(conjugation), it.d, going, it.whole)
    # φ follows from scalars: gᵀx and xᵀr would cost two more passes over the vectors.
    gain = length * curvature
    it.phi.append(torch.addcmul(it.phi[-1], length, 0.5 * gain - it.slope))
    it.slope = torch.addcmul(rz, conjugation, it.slope - gain)
    it.rr, it.rz = rr, rz
    it.iterations = it.iterations + going
    it.finish(~(rr < torch.inf), Stop.NOT_FINITE)  # written so that NaN stops as well
    slow = rules.progress_stop(it.phi)
    if slow is not None:
        it.finish(slow, Stop.PROGRESS)


def _add(vector: Tensor, other: Tensor, scale: Tensor, sign: int, mask: Tensor, whole: bool) -> Tensor:
    """Return vector ± scale · other in the rows of the mask, vector elsewhere."""
    if whole:  # no frozen row to protect: in place, without a second tensor of K · P numbers
        return vector.addcmul_(scale, other, value=sign)
    return torch.where(rows.expand(mask), torch.addcmul(vector, scale, other, value=sign), vector)


def _combine(z: Tensor, scale: Tensor, d: Tensor, mask: Tensor, whole: bool) -> Tensor:
    """Return z + scale · d in the rows of the mask, d elsewhere."""
    if whole:
        return torch.addcmul(z, scale, d, out=d)
    return torch.where(rows.expand(mask), torch.addcmul(z, scale, d), d)

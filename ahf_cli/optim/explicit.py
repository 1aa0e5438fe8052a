"""Optimizers whose update is a formula of gradient and memory, without a linear system."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import ahf_cli.optim.rows as rows
from ahf_cli.optim.linearization import Evaluation
from ahf_cli.optim.moments import Moments, Values
from ahf_cli.optim.objective import Objective
from ahf_cli.optim.operators import Operator, hessian
from ahf_cli.optim.precision import in_full_precision
from ahf_cli.optim.rows import Layout
from ahf_cli.optim.state import State, StepInfo, begin, explicit_step


@dataclass(frozen=True)
class Move:
    """One step of an explicit optimizer, row by row."""

    parameters: Tensor  # θ + u, (K, P)
    update: Tensor  # u, (K, P)
    moments: Moments
    products: int = 0  # curvature products of the step
    gradients: int | Tensor = 1  # equal in all rows, or (K,) int64
    memories: tuple[Any, ...] = ()  # of each row, beside the moments


class ExplicitOptimizer(ABC):
    """θ ← θ + u; a subclass gives u and the names of its memory, vectors that begin at zero."""

    independent_batch = False
    curvature_batches = 1

    memory: tuple[str, ...]
    """names of the moments"""

    @abstractmethod
    def move(self, state: State, here: Evaluation) -> Move:
        """Return the update and the new moments, given h at θ."""

    def move_on(self, state: State, here: Evaluation, objective: Objective) -> Move:
        """Return `move`; an optimizer that evaluates h at other points of the batch overrides this."""
        return self.move(state, here)

    def init(self, parameters: Tensor, hyperparameters: Mapping[str, Tensor | float]) -> State:
        """Make the state of K trials before their first step; (K, P)."""
        moments = {name: torch.zeros_like(parameters) for name in self.memory}
        return begin(parameters, hyperparameters, moments)

    @in_full_precision
    def step(
        self, state: State, objective: Objective, curvature_objective: Objective | None = None
    ) -> tuple[State, StepInfo]:
        """Take one step in every active row."""
        if curvature_objective is not None:
            raise ValueError("curvature_batch: this recipe takes no curvature objective")
        here = objective.evaluate(state.parameters)
        move = self.move_on(state, here, objective)
        loss_after = objective.value(move.parameters)
        info = explicit_step(state, here, move.update, loss_after, move.products, move.gradients)
        # δ = −g by convention: the columns of a study then have one meaning for all optimizers.
        after = state.moved(move.parameters, -here.gradient, state.damping, move.moments, info.finite)
        return replace(after, memories=move.memories), info


@dataclass(frozen=True)
class At:
    """The point at which a formula gives its update, all rows together."""

    g: Tensor  # the gradient, (K, P)
    theta: Tensor  # θ, (K, P)
    moments: Moments
    h: Values  # hyperparameters as columns, (K, 1), in float64
    t: Tensor  # number of the step, (K, 1), in float64
    layout: Layout

    def value(self, name: str) -> Tensor:
        """Return a hyperparameter in the dtype of g, (K, 1)."""
        return self.h[name].to(self.g)


Formula = Callable[[At], tuple[Tensor, Moments]]
"""point ↦ u and the new moments."""


Limit = Callable[[Tensor, Values], Tensor]
"""(g, hyperparameters) ↦ g or a shorter gradient; (K, P) → (K, P)."""


def unlimited(gradient: Tensor, values: Values) -> Tensor:
    """Return g itself."""
    return gradient


def within_norm(gradient: Tensor, values: Values) -> Tensor:
    """Return g · min(1, c/(‖g‖ + 1e-6)), as `torch.nn.utils.clip_grad_norm_` (Pascanu et al. 2013).

    c is the hyperparameter `gradient_radius`.
    """
    return gradient * rows.expand((values["gradient_radius"] / (rows.l2(gradient) + 1e-6)).clamp_max(1))


@dataclass(frozen=True)
class FirstOrderOptimizer(ExplicitOptimizer):
    """u from the formula of an optimizer of `torch.optim`, whose steps it repeats, row by row."""

    memory: tuple[str, ...]
    formula: Formula
    limit: Limit = unlimited
    """limit of the gradient's length, before the formula"""

    def move(self, state: State, here: Evaluation) -> Move:
        """Apply the formula to all rows at once."""
        # Float64, as PyTorch computes with Python's numbers: 1 − β₂ᵗ loses digits in float32.
        columns = {name: rows.expand(value.double()) for name, value in state.hyperparameters.items()}
        t = rows.expand(state.step + 1).double()
        g = self.limit(here.gradient, state.hyperparameters)
        at = At(g, state.parameters, state.moments, columns, t, here.layout)
        update, moments = self.formula(at)
        return Move(state.parameters + update, update, moments)


def _momentum(nesterov: bool) -> Formula:
    def formula(at: At) -> tuple[Tensor, Moments]:
        # PyTorch begins without a buffer; a buffer of zeros gives the same first step.
        decay, lr, g = at.value("momentum"), at.value("lr"), at.g
        buffer = g + decay * at.moments["momentum_buffer"]
        return -lr * (g + decay * buffer if nesterov else buffer), {"momentum_buffer": buffer}

    return formula


def _adagrad(at: At) -> tuple[Tensor, Moments]:
    total = at.moments["sum"] + at.g * at.g
    return -at.value("lr") * at.g / (total.sqrt() + at.value("mu")), {"sum": total}


def _square(at: At, before: Tensor) -> Tensor:
    """Return β₂ v + (1 − β₂) g²."""
    return at.value("beta2") * before + (1 - at.h["beta2"]).to(at.g) * at.g * at.g


def _rmsprop(at: At) -> tuple[Tensor, Moments]:
    square = _square(at, at.moments["square_avg"])
    return -at.value("lr") * at.g / (square.sqrt() + at.value("mu")), {"square_avg": square}


def _adam(at: At) -> tuple[Tensor, Moments]:
    first = torch.lerp(at.moments["exp_avg"], at.g, (1 - at.h["beta1"]).to(at.g))
    second = _square(at, at.moments["exp_avg_sq"])
    length, root = at.h["lr"] / (1 - at.h["beta1"] ** at.t), (1 - at.h["beta2"] ** at.t).sqrt()
    update = -length.to(at.g) * first / (second.sqrt() / root.to(at.g) + at.value("mu"))
    return update, {"exp_avg": first, "exp_avg_sq": second}


def adamw_update(at: At) -> tuple[Tensor, Moments]:
    """Return AdamW's update −α m̂ / (√v̂ + μ) − α w θ and its moments."""
    update, moments = _adam(at)
    return update - (at.h["lr"] * at.h["weight_decay"]).to(at.g) * at.theta, moments


def _nadam(at: At) -> tuple[Tensor, Moments]:
    h, g = at.h, at.g
    first = torch.lerp(at.moments["exp_avg"], g, (1 - h["beta1"]).to(g))
    second = _square(at, at.moments["exp_avg_sq"])
    now, following = (h["beta1"] * (1 - 0.5 * 0.96 ** (0.004 * t)) for t in (at.t, at.t + 1))
    product = now * at.moments.get("mu_product", torch.ones_like(now))
    root = (1 - h["beta2"] ** at.t).sqrt()
    denominator = second.sqrt() / root.to(g) + at.value("mu")
    mean = (h["lr"] * (1 - now) / (1 - product)).to(g) * g
    mean = mean + (h["lr"] * following / (1 - product * following)).to(g) * first
    return -mean / denominator, {"exp_avg": first, "exp_avg_sq": second, "mu_product": product}


sgd_momentum = FirstOrderOptimizer(("momentum_buffer",), _momentum(nesterov=False))
nesterov = FirstOrderOptimizer(("momentum_buffer",), _momentum(nesterov=True))
adagrad = FirstOrderOptimizer(("sum",), _adagrad)
rmsprop = FirstOrderOptimizer(("square_avg",), _rmsprop)
adam = FirstOrderOptimizer(("exp_avg", "exp_avg_sq"), _adam)
adamw = FirstOrderOptimizer(("exp_avg", "exp_avg_sq"), adamw_update)
nadam = FirstOrderOptimizer(("exp_avg", "exp_avg_sq"), _nadam)


def rademacher(step: int, like: Tensor) -> Tensor:
    """Draw independent signs ±1 of probability ½ for a step, equal in all rows; (K, P) → (K, P).

    The signs are a pure function of the step, drawn on the CPU.  So a resumed run and an uninterrupted run
    draw the same signs, and so does every device.
    """
    source = torch.Generator().manual_seed(step)
    signs = torch.randint(0, 2, like.shape[-1:], generator=source) * 2 - 1
    return signs.to(like).expand_as(like)


def hutchinson_diagonal(operator: Operator, probe: Tensor) -> Tensor:
    """Return z ⊙ Bz; its mean over signs z is the diagonal of B (Bekas et al. 2007); (K, P) → (K, P)."""
    return probe * operator(probe)


def spatial_average(diagonal: Tensor, layout: Layout) -> Tensor:
    """Average over the positions of each convolution kernel (Yao et al. 2021, Eq. 10); (K, P) → (K, P)."""
    pieces = [
        piece.mean(dim=tuple(range(3, piece.dim())), keepdim=True).expand_as(piece)
        if piece.dim() > 3  # (K, out, in, positions …)
        else piece
        for piece in layout.split(diagonal)
    ]
    return layout.join(pieces, len(diagonal))


@dataclass(frozen=True)
class AdaHessian(ExplicitOptimizer):
    """AdaHessian (Yao et al. 2021), Adam with an estimated diagonal of the Hessian H: u = −α m̂ / (D̄ᵏ + μ).

    D is the spatial average of z ⊙ Hz with one random probe z a step.  m ← β₁ m + (1−β₁) g, and
    v ← β₂ v + (1−β₂) D²; m̂ and D̄² = v̂ are m and v with bias correction.  k is `hessian_power`.
    """

    memory = ("first", "second")

    def move(self, state: State, here: Evaluation) -> Move:
        """Take one Hessian product and return the update."""
        operator = here.operator(hessian)  # first: the gradient is then read from the graph of H
        gradient, h = here.gradient, state.hyperparameters
        t = state.step + 1
        # The largest t: rows that diverged have stopped counting, all others are at the same step.
        probe = rademacher(int(t.max()), gradient)
        diagonal = spatial_average(hutchinson_diagonal(operator, probe), here.layout)
        b1, b2, power = (rows.expand(h[name]) for name in ("beta1", "beta2", "hessian_power"))
        first = b1 * state.moments["first"] + (1 - b1) * gradient
        second = b2 * state.moments["second"] + (1 - b2) * diagonal.square()
        count = rows.expand(t)
        mean, square = first / (1 - b1**count), second / (1 - b2**count)
        update = -rows.expand(h["lr"]) * mean / (square ** (power / 2) + rows.expand(h["mu"]))
        return Move(state.parameters + update, update, {"first": first, "second": second}, products=1)

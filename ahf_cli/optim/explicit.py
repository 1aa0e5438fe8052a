"""Recipes whose update is a formula of gradient and memory, without a linear system."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import ahf_cli.optim.rows as rows
from ahf_cli.optim.linearization import Evaluation
from ahf_cli.optim.moments import Moments
from ahf_cli.optim.objective import Objective
from ahf_cli.optim.operators import Operator, hessian
from ahf_cli.optim.rows import Layout
from ahf_cli.optim.state import State, StepInfo, begin, explicit_step


@dataclass(frozen=True)
class Move:
    """One step of such a recipe, row by row."""

    parameters: Tensor  # θ + u, (K, P)
    update: Tensor  # u, (K, P)
    moments: Moments
    products: int = 0  # curvature products that it took


class ExplicitOptimizer(ABC):
    """θ ← θ + u; a subclass gives u and its memory, vectors that are zero at first."""

    independent_batch = False
    curvature_batches = 1

    @property
    @abstractmethod
    def memory(self) -> tuple[str, ...]:
        """Names of the moments."""

    @abstractmethod
    def move(self, state: State, here: Evaluation) -> Move:
        """Return the update and the new moments, given h at θ."""

    def init(self, parameters: Tensor, hyperparameters: Mapping[str, Tensor | float]) -> State:
        """Make the state of K trials before their first step; (K, P)."""
        moments = {name: torch.zeros_like(parameters) for name in self.memory}
        return begin(parameters, hyperparameters, moments)

    def step(
        self, state: State, objective: Objective, curvature_objective: Objective | None = None
    ) -> tuple[State, StepInfo]:
        """Take one step in every active row."""
        if curvature_objective is not None:
            raise ValueError("curvature_batch: this recipe takes no curvature objective")
        here = objective.evaluate(state.parameters)
        move = self.move(state, here)
        loss_after = objective.value(move.parameters)
        info = explicit_step(state, here, move.update, loss_after, move.products)
        after = state.moved(move.parameters, -here.gradient, state.damping, move.moments, info.finite)
        return after, info


Options = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """An optimizer of `torch.optim`: the vectors in its state, and the keywords of its hyperparameters."""

    optimizer: Callable[..., torch.optim.Optimizer]
    moments: tuple[str, ...]
    """the vectors in its state, all zero at first"""
    options: Callable[[Mapping[str, float]], Options]
    """its keywords from our hyperparameters"""
    counts: bool = True
    """whether its state holds the number of steps"""


def _sgd(nesterov: bool) -> Source:
    def options(h: Mapping[str, float]) -> Options:
        return {"lr": h["lr"], "momentum": h["momentum"], "nesterov": nesterov}

    # A buffer of zeros is what PyTorch's first step, which has none, comes to.
    return Source(torch.optim.SGD, ("momentum_buffer",), options, counts=False)


@dataclass(frozen=True)
class FirstOrderOptimizer(ExplicitOptimizer):
    """u from `torch.optim`, row by row; all that it remembers lies in the `State`."""

    source: Source

    @property
    def memory(self) -> tuple[str, ...]:
        """Names of the vectors in the state of PyTorch's optimizer."""
        return self.source.moments

    def move(self, state: State, here: Evaluation) -> Move:
        """Let `torch.optim` move a copy of each row by its own hyperparameters."""
        gradient = here.gradient
        source = self.source
        values = {name: value.tolist() for name, value in state.hyperparameters.items()}
        leaves = [nn.Parameter(row.clone()) for row in state.parameters]
        groups = []
        for k, leaf in enumerate(leaves):
            leaf.grad = gradient[k]
            own = {name: value[k] for name, value in values.items()}
            groups.append({"params": [leaf], **source.options(own)})
        optimizer = source.optimizer(groups)
        for k, leaf in enumerate(leaves):
            kept: dict[str, Tensor] = {name: state.moments[name][k].clone() for name in source.moments}
            optimizer.state[leaf] = kept | (
                {"step": state.step[k].to("cpu", torch.float32)} if source.counts else {}
            )
        optimizer.step()
        theta = torch.stack([leaf.detach() for leaf in leaves])
        moments = {
            name: torch.stack([optimizer.state[leaf][name] for leaf in leaves]) for name in source.moments
        }
        return Move(theta, theta - state.parameters, moments)


sgd_momentum = FirstOrderOptimizer(_sgd(nesterov=False))
nesterov = FirstOrderOptimizer(_sgd(nesterov=True))
adagrad = FirstOrderOptimizer(
    Source(torch.optim.Adagrad, ("sum",), lambda h: {"lr": h["lr"], "eps": h["mu"]})
)
rmsprop = FirstOrderOptimizer(
    Source(
        torch.optim.RMSprop, ("square_avg",), lambda h: {"lr": h["lr"], "alpha": h["beta2"], "eps": h["mu"]}
    )
)
adam = FirstOrderOptimizer(
    Source(
        torch.optim.Adam, ("exp_avg", "exp_avg_sq"),
        lambda h: {"lr": h["lr"], "betas": (h["beta1"], h["beta2"]), "eps": h["mu"]},
    )
)  # fmt: skip


def rademacher(step: int, like: Tensor) -> Tensor:
    """Draw independent signs ±1 of probability ½ for a step, equal in all rows; (K, P) → (K, P).

    A pure function of the step, drawn on the CPU, so that a resumed run draws what an uninterrupted one does
    and every device the same.
    """
    source = torch.Generator().manual_seed(step)
    signs = torch.randint(0, 2, like.shape[-1:], generator=source) * 2 - 1
    return signs.to(like).expand_as(like)


def hutchinson_diagonal(operator: Operator, probe: Tensor) -> Tensor:
    """Return z ⊙ Bz, whose mean over signs z is the diagonal of B (Bekas et al. 2007); (K, P) → (K, P)."""
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
    """u = −α m̂ / (D̄ᵏ + μ), D̄² the bias-corrected moving average of squared diagonals.

    m ← β₁ m + (1−β₁) g; v ← β₂ v + (1−β₂) D²; D = spatial average of z ⊙ Hz, one probe z a step; k is
    `hessian_power`.
    """

    memory = ("first", "second")

    def move(self, state: State, here: Evaluation) -> Move:
        """Take one Hessian product and return the update."""
        operator = here.operator(hessian)
        gradient, h = here.gradient, state.hyperparameters
        t = state.step + 1
        probe = rademacher(int(t.max()), gradient)
        diagonal = spatial_average(hutchinson_diagonal(operator, probe), here.layout)
        b1, b2, power = (rows.expand(h[name]) for name in ("beta1", "beta2", "hessian_power"))
        first = b1 * state.moments["first"] + (1 - b1) * gradient
        second = b2 * state.moments["second"] + (1 - b2) * diagonal.square()
        count = rows.expand(t)
        mean, square = first / (1 - b1**count), second / (1 - b2**count)
        update = -rows.expand(h["lr"]) * mean / (square ** (power / 2) + rows.expand(h["mu"]))
        return Move(state.parameters + update, update, {"first": first, "second": second}, products=1)

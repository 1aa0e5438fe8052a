"""Optimizers whose update is a formula of gradient and memory, without a linear system."""

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
    """One step of an explicit optimizer, row by row."""

    parameters: Tensor  # θ + u, (K, P)
    update: Tensor  # u, (K, P)
    moments: Moments
    products: int = 0  # curvature products of the step


class ExplicitOptimizer(ABC):
    """θ ← θ + u; a subclass gives u and the names of its memory, vectors that begin at zero."""

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
        # δ = −g by convention: the columns of a study then have one meaning for all optimizers.
        after = state.moved(move.parameters, -here.gradient, state.damping, move.moments, info.finite)
        return after, info


Options = dict[str, Any]


@dataclass(frozen=True)
class TorchMethod:
    """An optimizer of `torch.optim`, with the vectors of its state and its keywords."""

    optimizer: Callable[..., torch.optim.Optimizer]
    moments: tuple[str, ...]
    """names of the vectors in its state, all zero at first"""
    options: Callable[[Mapping[str, float]], Options]
    """hyperparameters of a recipe ↦ its keywords"""
    counts: bool = True
    """whether its state holds the number of steps"""


def _sgd(nesterov: bool) -> TorchMethod:
    def options(h: Mapping[str, float]) -> Options:
        return {"lr": h["lr"], "momentum": h["momentum"], "nesterov": nesterov}

    # PyTorch begins without a buffer; a buffer of zeros gives the same first step.
    return TorchMethod(torch.optim.SGD, ("momentum_buffer",), options, counts=False)


@dataclass(frozen=True)
class FirstOrderOptimizer(ExplicitOptimizer):
    """u from `torch.optim`, row by row; its whole memory lies in the `State`."""

    source: TorchMethod

    @property
    def memory(self) -> tuple[str, ...]:
        """Names of the vectors in the state of PyTorch's optimizer."""
        return self.source.moments

    def move(self, state: State, here: Evaluation) -> Move:
        """Let `torch.optim` move a copy of each row by its own hyperparameters."""
        gradient = here.gradient
        source = self.source
        values = {name: value.tolist() for name, value in state.hyperparameters.items()}
        # A leaf and a group for each row, since hyperparameters belong to a group and differ by trial.
        leaves = [nn.Parameter(row.clone()) for row in state.parameters]
        groups = []
        for k, leaf in enumerate(leaves):
            leaf.grad = gradient[k]
            own = {name: value[k] for name, value in values.items()}
            groups.append({"params": [leaf], **source.options(own)})
        optimizer = source.optimizer(groups)
        for k, leaf in enumerate(leaves):
            # Clones: `torch.optim` writes into its state, and the old `State` must not change.
            kept: dict[str, Tensor] = {name: state.moments[name][k].clone() for name in source.moments}
            optimizer.state[leaf] = kept | (
                {"step": state.step[k].to("cpu", torch.float32)} if source.counts else {}
            )  # the count's dtype and device are PyTorch's own choice
        optimizer.step()
        theta = torch.stack([leaf.detach() for leaf in leaves])
        moments = {
            name: torch.stack([optimizer.state[leaf][name] for leaf in leaves]) for name in source.moments
        }
        return Move(theta, theta - state.parameters, moments)


sgd_momentum = FirstOrderOptimizer(_sgd(nesterov=False))
nesterov = FirstOrderOptimizer(_sgd(nesterov=True))
adagrad = FirstOrderOptimizer(
    TorchMethod(torch.optim.Adagrad, ("sum",), lambda h: {"lr": h["lr"], "eps": h["mu"]})
)
rmsprop = FirstOrderOptimizer(
    TorchMethod(
        torch.optim.RMSprop, ("square_avg",), lambda h: {"lr": h["lr"], "alpha": h["beta2"], "eps": h["mu"]}
    )
)
adam = FirstOrderOptimizer(
    TorchMethod(
        torch.optim.Adam, ("exp_avg", "exp_avg_sq"),
        lambda h: {"lr": h["lr"], "betas": (h["beta1"], h["beta2"]), "eps": h["mu"]},
    )
)  # fmt: skip


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

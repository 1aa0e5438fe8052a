"""First-order optimizers: those of `torch.optim` themselves, with one parameter group for each trial."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ahf_cli.optim.explicit import ExplicitOptimizer, Move
from ahf_cli.optim.linearization import Evaluation
from ahf_cli.optim.state import State

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

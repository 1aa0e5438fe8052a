"""Networks on random data of the right shape, from fixed seeds: the cost does not depend on the images."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from ahf_cli.optim import (
    MartensRules,
    ModelObjective,
    Optimizer,
    State,
    StepInfo,
    compose,
    gauss_newton,
    hessian,
)
from ahf_cli.optim.any_optimizer import AnyOptimizer
from ahf_cli.optim.layers.chain import Chain
from ahf_cli.optim.newton import TruncatedNewton
from ahf_cli.optim.operators import Curvature
from ahf_cli.recipes.builtin import find_recipe
from ahf_cli.recipes.structure import Structure
from ahf_cli.tasks.initial import glorot_uniform
from ahf_cli.tasks.models import LeNet

BATCH_SIZE = 128
DAMPING = 0.01
"""So small that 50 CG iterations are not past convergence, where numbers underflow and take another time."""
CURVATURES: dict[str, Curvature] = {"hessian": hessian, "ggn": gauss_newton}


def mlp(*widths: int) -> nn.Sequential:
    """Make linear layers of these widths with ReLU between them."""
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def batch(device: torch.device, size: int = BATCH_SIZE, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw images and classes as Fashion-MNIST has them; (N, 1, 28, 28), (N,)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(size, 1, 28, 28, generator=generator)
    return images.to(device), torch.randint(10, (size,), generator=generator).to(device)


def objective(
    device: torch.device,
    model: nn.Module | None = None,
    size: int = BATCH_SIZE,
    seed: int = 0,
    explicit: bool = True,
) -> ModelObjective:
    """Make h of a model, LeNet unless given, on one batch; by automatic differentiation if not `explicit`."""
    chain = Chain.of if explicit else None
    return ModelObjective((model or LeNet()).to(device), *batch(device, size, seed), chain=chain)


def weights(h: ModelObjective, trials: int = 1) -> Tensor:
    """Draw initial weights, another seed for each trial; (K, P)."""
    return torch.stack([glorot_uniform(h.layout, seed) for seed in range(trials)]).to(h.inputs.device)


def module_at(h: ModelObjective, parameters: Tensor) -> nn.Module:
    """Return a copy of the model with these parameters, (1, P)."""
    model = copy.deepcopy(h.model)
    load(model, h, parameters)
    return model


@torch.no_grad()
def load(model: nn.Module, h: ModelObjective, parameters: Tensor) -> None:
    """Copy parameters, (1, P), into a model."""
    for parameter, piece in zip(model.parameters(), h.layout.split(parameters), strict=True):
        parameter.copy_(piece[0])


def plain_gradient(h: ModelObjective, parameters: Tensor) -> Callable[[], Tensor]:
    """Make the gradient of an ordinary training loop: module, `cross_entropy` and `backward`."""
    model = module_at(h, parameters)

    def gradient() -> Tensor:
        model.zero_grad()
        nn.functional.cross_entropy(model(h.inputs), h.targets).backward()  # type: ignore[no-untyped-call]
        return cast("Tensor", next(model.parameters()).grad)

    return gradient


class EndlessRules(MartensRules):
    """Martens' rules with their full cost, whose verdict is always to go on."""

    def residual_tolerance(self, squared: Tensor) -> Tensor:
        """Below every residual."""
        return torch.full_like(squared, -1.0)

    def breaks_down(self, curvature: Tensor) -> Tensor:
        """Look, and say no."""
        return super().breaks_down(curvature) & False

    def progress_stop(self, phi: list[Tensor]) -> Tensor | None:
        """Look, and say no."""
        slow = super().progress_stop(phi)
        return None if slow is None else slow & False


def fixed_length(recipe: str, curvature: str, iterations: int) -> Optimizer:
    """Compose a recipe whose steps take exactly so many CG iterations."""
    structure: Structure = replace(find_recipe(recipe).choices, curvature=curvature)
    return endless(compose(structure), iterations)


def endless(optimizer: Optimizer, iterations: int) -> Optimizer:
    """Return the optimizer with so many CG iterations a step, or its own maximum if that is less."""
    solver = optimizer.solver
    if not isinstance(solver, TruncatedNewton):
        return optimizer
    count = min(iterations, solver.max_iterations)
    return replace(optimizer, solver=replace(solver, rules=EndlessRules(), max_iterations=count))


def warm_state(
    optimizer: AnyOptimizer, recipe: str, h: ModelObjective, curvature: ModelObjective, trials: int = 1
) -> State:
    """Take one step, so that the next one starts as all later ones do: from the previous direction."""
    found = find_recipe(recipe)
    values = found.complete({"damping": DAMPING} if "damping" in found.hyperparameters else {})
    state, info = step(optimizer, optimizer.init(weights(h, trials), values), h, curvature)()
    if not bool(info.finite.all()):
        raise RuntimeError(f"{recipe}: the first step of the benchmark is not finite")
    return state


def step(
    optimizer: AnyOptimizer, state: State, h: ModelObjective, curvature: ModelObjective
) -> Callable[[], tuple[State, StepInfo]]:
    """Make a step from this state; the second batch serves recipes with a batch of their own for B."""
    second = curvature if optimizer.independent_batch else None
    return partial(optimizer.step, state, h, second)

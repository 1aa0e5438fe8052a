"""Networks on random data of the right shape, from fixed seeds: the cost does not depend on the images."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from ahf_cli.optim import (
    MartensRules,
    ModelObjective,
    Optimizer,
    State,
    compose,
    gauss_newton,
    hessian,
)
from ahf_cli.optim.newton import TruncatedNewton
from ahf_cli.optim.operators import Curvature
from ahf_cli.recipes.builtin import find_recipe
from ahf_cli.tasks.models import LeNet, glorot_uniform

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
    device: torch.device, model: nn.Module | None = None, size: int = BATCH_SIZE, seed: int = 0
) -> ModelObjective:
    """Make h of a model, LeNet unless given, on one batch."""
    return ModelObjective((model or LeNet()).to(device), *batch(device, size, seed))


def weights(h: ModelObjective, trials: int = 1) -> Tensor:
    """Draw initial weights, another seed for each trial; (K, P)."""
    return torch.stack([glorot_uniform(h.layout, seed) for seed in range(trials)]).to(h.inputs.device)


class EndlessRules(MartensRules):
    """Martens' rules with their full cost, whose verdict is always to go on."""

    def residual_tolerance(self, dtype: torch.dtype) -> float:
        """Below every residual."""
        return -1.0

    def breaks_down(self, curvature: Tensor) -> Tensor:
        """Look, and say no."""
        return super().breaks_down(curvature) & False

    def progress_stop(self, phi: list[Tensor]) -> Tensor | None:
        """Look, and say no."""
        slow = super().progress_stop(phi)
        return None if slow is None else slow & False


def fixed_length(recipe: str, curvature: str, iterations: int) -> Optimizer:
    """Compose a recipe whose steps take exactly so many CG iterations."""
    structure = replace(find_recipe(recipe).choices, curvature=curvature)
    solver = TruncatedNewton(EndlessRules(), iterations, structure.warm_start_decay)
    return replace(compose(structure), solver=solver)


def warm_state(
    optimizer: Optimizer, recipe: str, h: ModelObjective, curvature: ModelObjective, trials: int = 1
) -> State:
    """Take one step, so that the next one starts as all later ones do: from the previous direction."""
    values = find_recipe(recipe).complete({"damping": DAMPING})
    state, info = optimizer.step(optimizer.init(weights(h, trials), values), h, curvature)
    if not bool(info.finite.all()):
        raise RuntimeError(f"{recipe}: the first step of the benchmark is not finite")
    return state

"""Traces: runs recorded in float64 with all their inputs, and their replay on our core."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ahf_cli.optim import ModelObjective, Optimizer, State, Stop, compose
from ahf_cli.recipes.builtin import find_recipe
from ahf_cli.recipes.recipe import Recipe
from ahf_cli.recipes.structure import CHOICES
from ahf_cli.tasks.models import LeNet

Array = NDArray[Any]
KINDS = ("mlp", "lenet")
"""a chain of linear layers with ReLU between, or LeNet"""
TOLERANCE = 1e-5
"""largest relative deviation of a scalar, and of a vector in the 2-norm"""
FLOOR = 1e-9
"""smallest denominator of a relative deviation"""
EXACT = ("cg_iterations", "stop")
QUANTITIES = (
    "loss", "loss_after", "loss_full_step", "damping", "damping_next", "reduction_ratio", "cg_iterations",
    "model_value", "direction_l2", "direction_l1", "step_size", "update_l2", "stop",
)  # fmt: skip


@dataclass(frozen=True)
class Trace:
    """One recorded run."""

    setup: Mapping[str, Any]
    """`kind`, `recipe`, `steps`, `batch`, structural choices and hyperparameters by name"""
    x: Array
    """all inputs in order, (n, …)"""
    y: Array
    """all classes in order, (n,)"""
    init: Mapping[str, Array]
    final: Mapping[str, Array]
    series: Mapping[str, Array]
    """one value a step of each of `QUANTITIES`, (steps,)"""
    last_direction: Array
    """δ of the last step, (P,), parameters in the order of `init`"""


@dataclass(frozen=True)
class Deviation:
    """How far one quantity of a replay is from the record."""

    quantity: str
    largest: float
    """largest relative deviation; for exact quantities the share of steps that differ"""
    first_step: int | None
    """first step outside the tolerance; 0 for a final array outside, None if all is inside"""


def model_of(kind: str, init: Mapping[str, Array]) -> nn.Module:
    """Build the float64 model of a trace; `kind` is one of `KINDS`."""
    if kind == "lenet":
        return LeNet().double()
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name in [key.removesuffix(".weight") for key in init if key.endswith(".weight")]:
        if layers:
            layers[f"relu_before_{name}"] = nn.ReLU()
        outputs, inputs = init[f"{name}.weight"].shape
        layers[name] = nn.Linear(inputs, outputs, bias=f"{name}.bias" in init, dtype=torch.float64)
    return nn.Sequential(layers)


def recipe_of(setup: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a trace: the named one, with the choices that the setup gives.

    Raises ValueError for an unknown recipe or choice, or a recipe that solves no linear system.
    """
    name = setup.get("recipe")
    if not isinstance(name, str):
        raise ValueError(f"recipe must be the name of one, got {name!r}")
    choices = {key: setup[key] for key in CHOICES if key in setup}
    found = find_recipe(name)
    _ = found.choices
    derived = found.derive("trace", choices)
    if derived.choices.curvature_batches > 1:
        raise ValueError("curvature_batches must be 1 in a trace, whose batches are of one size")
    return derived


def replay(trace: Trace) -> Trace:
    """Run the setup of a sound trace on its own inputs and return what our core does."""
    return run(trace.setup, recipe_of(trace.setup), trace.x, trace.y, trace.init)


def run(
    setup: Mapping[str, Any],
    recipe: Recipe,
    x: Array,
    y: Array,
    init: Mapping[str, Array],
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Trace:
    """Run one trial in float64: step t uses batch t and, for an independent curvature batch, `steps` + t.

    `on_step` hears of every step, from 1, with its loss.
    """
    model = model_of(setup["kind"], init)
    names = [name for name, _ in model.named_parameters()]
    theta = np.concatenate([np.asarray(init[name], dtype=np.float64).ravel() for name in names])
    values = {key: float(setup[key]) for key in recipe.hyperparameters if key in setup}
    optimizer = compose(recipe.choices)
    state = optimizer.init(torch.from_numpy(theta)[None], recipe.complete(values))
    series: dict[str, list[Any]] = {name: [] for name in QUANTITIES}
    for step in range(setup["steps"]):
        state = _record_step(optimizer, state, _batches(model, setup, optimizer, x, y, step), recipe, series)
        on_step(step + 1, series["loss"][-1])
    layout = ModelObjective(model, torch.empty(0), torch.empty(0)).layout
    pieces = {
        name: piece[0].numpy() for name, piece in zip(names, layout.split(state.parameters), strict=True)
    }
    directions = dict(zip(names, layout.split(state.direction), strict=True))
    return Trace(
        setup=setup,
        x=x,
        y=y,
        init=init,
        final={name: pieces[name] for name in init},
        series={name: np.array(values) for name, values in series.items()},
        last_direction=np.concatenate([directions[name].numpy().ravel() for name in init]),
    )


def _batches(
    model: nn.Module, setup: Mapping[str, Any], optimizer: Optimizer, x: Array, y: Array, step: int
) -> list[ModelObjective]:
    size, steps = setup["batch"], setup["steps"]
    numbers = [step, steps + step] if optimizer.independent_batch else [step]
    parts = [slice(n * size, (n + 1) * size) for n in numbers]
    return [
        ModelObjective(
            model,
            torch.from_numpy(np.ascontiguousarray(x[part], dtype=np.float64)),
            torch.from_numpy(np.ascontiguousarray(y[part], dtype=np.int64)),
        )
        for part in parts
    ]


def _record_step(
    optimizer: Optimizer,
    state: State,
    objectives: Sequence[ModelObjective],
    recipe: Recipe,
    series: dict[str, list[Any]],
) -> State:
    after, info = optimizer.step(state, *objectives)
    special: dict[str, Tensor] = {
        "loss_full_step": objectives[0].value(state.parameters + info.direction),
        # The released code logs Eq. 3 and never uses it; its traces hold what it logs.
        "step_size": info.eq3_step_size if recipe.choices.moments == "published" else info.step_size,
    }
    for name in QUANTITIES:
        value = special[name] if name in special else getattr(info, name)
        series[name].append(Stop(int(value)).name.lower() if name == "stop" else value.item())
    return after


def deviations(recorded: Trace, ours: Trace) -> list[Deviation]:
    """Compare a replay with its record, quantity by quantity; both are sound traces of the same setup."""
    vectors = {
        "last_direction": (recorded.last_direction, ours.last_direction),
        **{f"final/{name}": (value, ours.final[name]) for name, value in recorded.final.items()},
    }
    return [
        *(_series_deviation(name, value, ours.series[name]) for name, value in recorded.series.items()),
        *(_vector_deviation(name, theirs, mine) for name, (theirs, mine) in vectors.items()),
    ]


def _series_deviation(name: str, theirs: Array, mine: Array) -> Deviation:
    if name in EXACT:
        outside = theirs != mine
        size = float(np.mean(outside))
    else:
        both_nan = np.isnan(theirs) & np.isnan(mine)
        with np.errstate(invalid="ignore"):
            relative = np.abs(mine - theirs) / np.maximum(np.abs(theirs), FLOOR)
        relative = np.where(both_nan | (mine == theirs), 0, np.where(np.isnan(relative), np.inf, relative))
        outside, size = relative > TOLERANCE, float(relative.max(initial=0))
    return Deviation(name, size, int(np.argmax(outside)) + 1 if outside.any() else None)


def _vector_deviation(name: str, theirs: Array, mine: Array) -> Deviation:
    if np.array_equal(theirs, mine, equal_nan=True):
        return Deviation(name, 0.0, None)
    with np.errstate(invalid="ignore"):
        size = float(np.linalg.norm(mine - theirs)) / max(float(np.linalg.norm(theirs)), FLOOR)
    size = math.inf if math.isnan(size) else size
    return Deviation(name, size, None if size <= TOLERANCE else 0)

"""Traces: runs recorded in float64 with all inputs, their replay on our core, and their rules."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ahf_cli.optim import ModelObjective, Optimizer, State, Stop, compose
from ahf_cli.recipes.builtin import find_recipe
from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS, nearest
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
    """The deviation of one quantity of a replay from the record."""

    quantity: str
    largest: float
    """largest relative deviation; for exact quantities the share of different steps"""
    first_step: int | None
    """first step outside the tolerance; 0 for a final array outside it, None if all is inside"""


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
    """Return the named recipe of a trace, with the choices of its setup.

    Raises ValueError for an unknown recipe or choice, or a recipe that solves no linear system.
    """
    name = setup.get("recipe")
    if not isinstance(name, str):
        raise ValueError(f"recipe must be the name of one, got {name!r}")
    choices = {key: setup[key] for key in CHOICES if key in setup}
    found = find_recipe(name)
    _ = found.choices
    derived = found.derive("trace", choices)
    for key in ("curvature_batches", "batch_growth"):
        if getattr(derived.choices, key) > 1:
            raise ValueError(f"{key} must be 1 in a trace, whose batches are of one size")
    return derived


def replay(trace: Trace) -> Trace:
    """Run the setup of a sound trace on its inputs, and return the trace of our core."""
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

    `on_step(t, loss)` is called after every step t = 1, 2, ….
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
        # The released code logs Eq. 3 and does not use it; its traces hold the logged values.
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


_IMAGE = (1, 28, 28)
_NUMBERS = "iuf"
"""NumPy's kinds of real numbers"""


def problems(trace: Trace) -> list[str]:
    """Return a line for each broken rule of a trace; [] for a trace that can be replayed and compared.

    A rule that needs a second part of the trace is checked only if that part is sound.
    """
    found = [*_setup_problems(trace.setup), *_layer_problems(trace)]
    if found:
        return found
    shapes = {
        name: tuple(parameter.shape)
        for name, parameter in model_of(trace.setup["kind"], trace.init).named_parameters()
    }
    found += _tensor_problems("init", trace.init, shapes, finite=True)
    found += _tensor_problems("final", trace.final, shapes)
    size = sum(map(math.prod, shapes.values()))
    found += _array_problems("last_direction", trace.last_direction, (size,))
    found += _series_problems(trace.series, trace.setup["steps"])
    return [*found, *_example_problems(trace, outputs=shapes[_last_layer(shapes)][0])]


def unknown_names(setup: Mapping[str, Any]) -> list[str]:
    """Return the unknown keys of a setup, which a replay ignores."""
    return [
        key for key in setup if key not in {"kind", "recipe", "steps", "batch", *CHOICES, *HYPERPARAMETERS}
    ]


def _setup_problems(setup: Mapping[str, Any]) -> Iterator[str]:
    kind = setup.get("kind")
    if kind not in KINDS:
        yield f"setup: kind must be one of {', '.join(KINDS)}, got {kind!r}"
    for key in ("steps", "batch"):
        value = setup.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            yield f"setup: {key} must be an integer ≥ 1, got {value!r}"
    try:
        recipe = recipe_of(setup)
    except (TypeError, ValueError) as error:
        yield f"setup: {error}"
        return
    for name in recipe.hyperparameters:
        value = setup.get(name)
        if value is None and name in recipe.fixed:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            yield f"setup: {name} must be a number, got {'nothing' if value is None else repr(value)}"
        elif not HYPERPARAMETERS[name].accepts(value):
            yield f"setup: {name} must be in {HYPERPARAMETERS[name].rule()}, got {value!r}"


def _layer_problems(trace: Trace) -> Iterator[str]:
    """Check that `init` describes a chain of layers; the shapes of LeNet are fixed."""
    if trace.setup.get("kind") != "mlp":
        return
    inputs: int | None = None
    for name, weight in trace.init.items():
        layer, _, part = name.rpartition(".")
        if part == "bias" and f"{layer}.weight" in trace.init:
            continue
        if part != "weight" or not layer or "." in layer:
            yield f"init/{name} must be the weight of a layer, or the bias of one that has a weight"
        elif weight.ndim != 2 or 0 in weight.shape:
            yield f"init/{name} must have the shape (outputs, inputs), got {weight.shape}"
        else:
            if inputs is not None and weight.shape[1] != inputs:
                yield f"init/{name} must take the {inputs} outputs of the layer before it, got {weight.shape}"
            inputs = weight.shape[0]


def _last_layer(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return [name for name in shapes if name.endswith(".weight")][-1]


def _tensor_problems(
    group: str, tensors: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], finite: bool = False
) -> Iterator[str]:
    absent = [f"{group}/{name}" for name in shapes if name not in tensors]
    if absent:
        yield f"a trace must hold {', '.join(absent)}"
    for name, value in tensors.items():
        if name not in shapes:
            yield f"{group}/{name} is no parameter of the model{nearest(name, shapes)}"
        else:
            yield from _array_problems(f"{group}/{name}", value, shapes[name], finite)


def _series_problems(series: Mapping[str, Array], steps: int) -> Iterator[str]:
    absent = [f"trace/{name}" for name in QUANTITIES if name not in series]
    if absent:
        yield f"a trace must hold {', '.join(absent)}"
    uneven = [f"trace/{name}" for name in series if name in QUANTITIES and series[name].shape != (steps,)]
    if uneven:
        first = series[uneven[0].removeprefix("trace/")].shape
        yield f"{', '.join(uneven)} must have one value a step, ({steps},), got {first}"
    for name, value in series.items():
        kinds = "U" if name == "stop" else _NUMBERS
        if name not in QUANTITIES:
            yield f"trace/{name} is no quantity of a trace{nearest(name, QUANTITIES)}"
        elif value.dtype.kind not in kinds:
            what = "strings" if name == "stop" else "real numbers"
            yield f"trace/{name} must hold {what}, got {value.dtype}"


def _array_problems(name: str, value: Array, shape: tuple[int, ...], finite: bool = False) -> Iterator[str]:
    if value.dtype.kind not in _NUMBERS:
        yield f"{name} must hold real numbers, got {value.dtype}"
    elif value.shape != shape:
        yield f"{name} must have the shape {shape}, got {value.shape}"
    elif finite and not np.isfinite(value).all():
        yield f"{name} must be finite, got {np.count_nonzero(~np.isfinite(value))} values that are not"


def _example_problems(trace: Trace, outputs: int) -> Iterator[str]:
    setup, x, y = trace.setup, trace.x, trace.y
    first = next(iter(trace.init.values()))
    item = _IMAGE if setup["kind"] == "lenet" else (first.shape[-1],)
    streams = 2 if recipe_of(setup).choices.curvature_batch == "independent" else 1
    needed = streams * setup["steps"] * setup["batch"]
    yield from _array_problems("x", x, (len(x) if x.ndim else 0, *item), finite=True)
    if x.ndim and len(x) < needed:
        used = f"{streams} × {setup['steps']} steps × batch {setup['batch']}"
        yield f"x must hold at least {needed} examples ({used}), got {len(x)}"
    if y.dtype.kind not in "iu":
        yield f"y must hold integers, got {y.dtype}"
    elif y.shape != x.shape[:1]:
        yield f"y must have one class an example, {x.shape[:1]}, got {y.shape}"
    elif len(y) and (y.min() < 0 or y.max() >= outputs):
        yield f"y must be classes in [0, {outputs}), got {y.min()} to {y.max()}"

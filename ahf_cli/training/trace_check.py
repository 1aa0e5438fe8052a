"""What a trace must hold to be replayed: all its rules, and one line for each that is broken."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS, nearest
from ahf_cli.recipes.structure import CHOICES
from ahf_cli.training.trace import KINDS, QUANTITIES, Array, Trace, model_of, recipe_of

_IMAGE = (1, 28, 28)
_NUMBERS = "iuf"
"""NumPy's kinds of real numbers"""


def problems(trace: Trace) -> list[str]:
    """Say everything that keeps a trace from being replayed and compared; [] where nothing does.

    A part whose rule needs another part is checked only where that other part is sound.
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
    """Return the keys of a setup that mean nothing here, and are ignored."""
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
    """Check that `init` describes a chain of layers; LeNet's shapes are its own."""
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

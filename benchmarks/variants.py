"""Implementations of the same curvature products side by side: the default and its alternatives.

Each alternative is the default for other models or machines, or was rejected for its time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp
from torch.nn import functional as F

from ahf_cli.optim import Linearization, ModelObjective
from ahf_cli.optim.layers.compiled import COMPILED
from ahf_cli.optim.linearization import GraphLinearization
from ahf_cli.optim.replay import Replayed, cuda_graph
from benchmarks import problems
from benchmarks.products import ITERATIONS, PLAIN, ratios
from benchmarks.timing import Bench, interleave, spread

Product = Callable[[Tensor], Tensor]
"""v ↦ B v, (K, P) → (K, P)."""
Evaluate = Callable[[Tensor], Linearization]


@dataclass(frozen=True)
class Variant:
    """An implementation of a product; `set_up` does the work of once a step."""

    curvature: str
    name: str
    trials: int
    set_up: Callable[[], Product]


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Time set-up and product of every variant in turn, beside the gradients of one trial."""
    h = problems.objective(bench.device)
    theta = problems.weights(h)
    many = 70 if h.inputs.is_cuda else 2 if bench.quick else 4
    variants = [*_of_one_trial(h, theta), *_of_many_trials(h, many)]
    if h.inputs.is_cuda:
        variants += [v for trials in (1, many) for v in _of_kernels(h, trials)]
    watches = {
        PLAIN: bench.stopwatch(problems.plain_gradient(h, theta)),
        "gradient": bench.stopwatch(lambda: h.evaluate(theta).gradient),
    }
    for n, product in enumerate(_checked(h, variants)):
        watches[f"{n} set-up"] = bench.stopwatch(variants[n].set_up)
        watches[f"{n} product"] = bench.stopwatch(partial(product, _vectors(h, variants[n].trials)))
    samples = interleave(watches, bench.budget(60, rounds=60))
    ms = {name: 1e3 * np.asarray(values) for name, values in samples.items()}
    return [_row(v, n, ms) for n, v in enumerate(variants)]


def _row(v: Variant, n: int, ms: Mapping[str, Any]) -> dict[str, Any]:
    # For each trial, so that all rows can be compared.
    set_up, product = ms[f"{n} set-up"] / v.trials, ms[f"{n} product"] / v.trials
    return {
        "curvature": v.curvature, "variant": v.name, "trials": v.trials, "iterations": ITERATIONS,
        "set_up": spread(set_up), "product": spread(product),
        **ratios(product + set_up / ITERATIONS, dict(ms)),
    }  # fmt: skip


def _checked(h: ModelObjective, variants: list[Variant]) -> list[Product]:
    """Set every variant up; raises RuntimeError if its product differs from the first of its kind."""
    products: list[Product] = []
    expected: dict[tuple[str, int], Tensor] = {}
    for v in variants:
        product = v.set_up()
        found = product(_vectors(h, v.trials))
        reference = expected.setdefault((v.curvature, v.trials), found)
        deviation = float(torch.linalg.vector_norm(found - reference) / torch.linalg.vector_norm(reference))
        if not deviation < 1e-3:
            raise RuntimeError(f"{v.curvature} product by {v.name} differs by {deviation:.1e}")
        products.append(product)
    return products


def _vectors(h: ModelObjective, trials: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(trials, h.layout.size, generator=generator).to(h.inputs.device)


def _set_up(evaluate: Evaluate, theta: Tensor, curvature: str) -> Product:
    """Compute all that the products share."""
    here = evaluate(theta)
    if curvature == "ggn":
        here.jvp(torch.zeros_like(theta))
    return here.operator(problems.CURVATURES[curvature])


def _of_one_trial(h: ModelObjective, theta: Tensor) -> list[Variant]:
    """Return the variants for K = 1, the default first."""
    automatic = problems.objective(h.inputs.device, h.model, explicit=False)
    evaluations: dict[str, Evaluate] = {"explicit layers, compiled convolution": h.evaluate}
    if COMPILED is None or h.inputs.is_cuda:
        evaluations = {"default": h.evaluate}
    else:
        evaluations["explicit layers, PyTorch's operations"] = partial(_by, "pytorch", h)
    evaluations["automatic differentiation, convolution as three operations"] = automatic.evaluate
    evaluations["automatic differentiation, PyTorch's convolution"] = partial(_graph, h)
    variants = [
        Variant(curvature, name, 1, partial(_set_up, evaluate, theta, curvature))
        for curvature in problems.CURVATURES
        for name, evaluate in evaluations.items()
    ]
    return [
        *variants,
        Variant("hessian", "forward over reverse, no graph kept", 1, partial(_forward, h, theta)),
    ]


def _by(numerics: str, h: ModelObjective, theta: Tensor) -> Linearization:
    """Evaluate by explicit layers on a numerical path that is not the default here."""
    with patch("ahf_cli.optim.layers.selected.numerics", lambda device: numerics):
        return h.evaluate(theta)


def _graph(h: ModelObjective, theta: Tensor) -> Linearization:
    """Evaluate one trial with PyTorch's own operations."""
    leaves = [piece[0].detach().requires_grad_() for piece in h.layout.split(theta)]
    outputs = functional_call(h.model, dict(zip(h.layout.names, leaves, strict=True)), (h.inputs,))[None]
    losses = h.loss.value(outputs, h.targets)
    return GraphLinearization(h.layout, leaves, losses, outputs, lambda: h.loss.hessian(outputs, h.targets))


def _forward(h: ModelObjective, theta: Tensor) -> Product:
    """Differentiate the gradient forward, anew for each product."""

    def loss(row: Tensor) -> Tensor:
        pieces = [piece[0] for piece in h.layout.split(row[None])]
        values = dict(zip(h.layout.names, pieces, strict=True))
        return F.cross_entropy(functional_call(h.model, values, (h.inputs,)), h.targets)

    return lambda v: jvp(grad(loss), (theta[0],), (v[0],))[1][None]


def _of_kernels(h: ModelObjective, trials: int) -> list[Variant]:
    """Return the variants that only a GPU has: Triton kernels, and products as CUDA graphs."""
    theta = problems.weights(h, trials)
    evaluations: dict[str, Evaluate] = {
        "PyTorch's operations": h.evaluate,
        "Triton kernels": partial(_by, "triton", h),
    }

    def graph(evaluate: Evaluate, curvature: str) -> Product:
        return Replayed(_set_up(evaluate, theta, curvature), cuda_graph)

    return [
        Variant(curvature, f"explicit layers, {name}{more}", trials, set_up)
        for curvature in problems.CURVATURES
        for name, evaluate in evaluations.items()
        for more, set_up in {
            "": partial(_set_up, evaluate, theta, curvature),
            ", a CUDA graph": partial(graph, evaluate, curvature),
        }.items()
    ]


def _of_many_trials(h: ModelObjective, trials: int) -> list[Variant]:
    """Return the variants for K products at once."""
    theta = problems.weights(h, trials)
    automatic = partial(ModelObjective, h.model, h.inputs, h.targets, chain=None)
    objectives = {
        "explicit layers, trials together": h,
        "automatic differentiation, trials in turn": automatic(vectorized=False),
        "automatic differentiation, `vmap`": automatic(vectorized=True),
    }
    return [
        Variant(curvature, name, trials, partial(_set_up, objective.evaluate, theta, curvature))
        for curvature in problems.CURVATURES
        for name, objective in objectives.items()
    ]

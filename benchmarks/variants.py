"""Ways to the same curvature products, side by side: what each needs once a step, and for each product."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, linearize, vjp
from torch.nn import functional as F

from ahf_cli.optim import ModelObjective
from ahf_cli.optim.linearization import GraphLinearization, Linearization
from ahf_cli.tasks.models import LeNet
from benchmarks import problems
from benchmarks.timing import Bench, interleave, spread

ITERATIONS = 15
"""CG iterations that share what is set up once a step."""
COMPILED = "compiled"
Product = Callable[[Tensor], Tensor]
"""v ↦ B v, (K, P) → (K, P)."""


@dataclass(frozen=True)
class Variant:
    """One way to a product; `set_up` does what a step needs once."""

    curvature: str
    way: str
    trials: int
    set_up: Callable[[], Product]


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Time set-up and product of every variant in turn, beside a gradient of one trial."""
    h = problems.objective(bench.device)
    theta = problems.weights(h)
    variants = [*_of_one_trial(h, theta, bench.quick), *_of_many_trials(h, 1 if bench.quick else 4)]
    products, absent = _ready(h, variants)
    watches = {"gradient": bench.stopwatch(lambda: h.evaluate(theta).gradient)}
    for n, product in products.items():
        watches[f"{n} set-up"] = bench.stopwatch(variants[n].set_up)
        watches[f"{n} product"] = bench.stopwatch(partial(product, _vectors(h, variants[n].trials)))
    samples = interleave(watches, bench.budget(60, rounds=60))
    ms = {name: 1e3 * np.asarray(values) for name, values in samples.items()}
    return [_row(v, n, ms, absent.get(n)) for n, v in enumerate(variants)]


def _row(v: Variant, n: int, ms: Mapping[str, Any], absent: str | None) -> dict[str, Any]:
    head = {"curvature": v.curvature, "way": v.way, "trials": v.trials, "iterations": ITERATIONS}
    if absent is not None:
        return {**head, "absent": absent}
    # For each trial, so that all rows can be compared.
    set_up, product = ms[f"{n} set-up"] / v.trials, ms[f"{n} product"] / v.trials
    ratio = (product + set_up / ITERATIONS) / ms["gradient"]
    return {**head, "set_up": spread(set_up), "product": spread(product), "ratio": spread(ratio)}


def _ready(h: ModelObjective, variants: list[Variant]) -> tuple[dict[int, Product], dict[int, str]]:
    """Set every variant up and compare its product with the first of its kind; note which cannot be had."""
    products: dict[int, Product] = {}
    absent: dict[int, str] = {}
    expected: dict[tuple[str, int], Tensor] = {}
    for n, v in enumerate(variants):
        try:
            with warnings.catch_warnings():  # compilers warn of what they do
                warnings.simplefilter("ignore")
                product = v.set_up()
                found = product(_vectors(h, v.trials))
        except Exception as error:
            if COMPILED not in v.way:
                raise
            absent[n] = type(error).__name__  # no compiler on this machine, say
            continue
        reference = expected.setdefault((v.curvature, v.trials), found)
        deviation = float(torch.linalg.vector_norm(found - reference) / torch.linalg.vector_norm(reference))
        if not deviation < 1e-3:
            raise RuntimeError(f"{v.curvature} product by {v.way} differs by {deviation:.1e}")
        products[n] = product
    return products, absent


def _vectors(h: ModelObjective, trials: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(trials, h.layout.size, generator=generator).to(h.inputs.device)


def _kept(evaluate: Callable[[], Linearization], curvature: str) -> Product:
    """Build the graph that all products share."""
    here = evaluate()
    if curvature == "ggn":
        here.jvp(torch.zeros_like(here.gradient))
    return here.operator(problems.CURVATURES[curvature])


def _plain(h: ModelObjective, theta: Tensor, model: nn.Module) -> GraphLinearization:
    """Evaluate one trial with PyTorch's own operations."""
    leaves = [piece[0].detach().requires_grad_() for piece in h.layout.split(theta)]
    outputs = functional_call(model, dict(zip(h.layout.names, leaves, strict=True)), (h.inputs,))[None]
    losses = h.loss.value(outputs, h.targets)
    return GraphLinearization(h.layout, leaves, losses, outputs, lambda: h.loss.hessian(outputs, h.targets))


def _graphs_kept(h: ModelObjective, theta: Tensor, curvature: str) -> list[Variant]:
    """Return the way that is in use, and the same on PyTorch's own convolution."""
    ways = {
        "graph kept, convolution as three operations (in use on a CPU)": lambda: h.evaluate(theta),
        "graph kept, PyTorch's convolution": lambda: _plain(h, theta, h.model),
    }
    return [Variant(curvature, way, 1, partial(_kept, make, curvature)) for way, make in ways.items()]


def _of_one_trial(h: ModelObjective, theta: Tensor, quick: bool) -> list[Variant]:
    """Return ways for K = 1, the one in use first."""
    flat = theta[0]

    def outputs(row: Tensor) -> Tensor:
        pieces = [piece[0] for piece in h.layout.split(row[None])]
        values = dict(zip(h.layout.names, pieces, strict=True))
        return functional_call(h.model, values, (h.inputs,))  # type: ignore[no-any-return]

    def loss(row: Tensor) -> Tensor:
        return F.cross_entropy(outputs(row), h.targets)

    gradient = grad(loss)

    def forward_over_reverse() -> Product:
        return lambda v: jvp(gradient, (flat,), (v[0],))[1][None]

    def linearized_gradient() -> Product:
        _, tangent = _linearize(gradient, flat)
        return lambda v: tangent(v[0])[None]

    def jvp_and_vjp() -> Product:
        z, back = _pullback(outputs, flat)
        hessian = h.loss.hessian(z[None], h.targets)
        return lambda v: back(hessian(jvp(outputs, (flat,), (v[0],))[1][None])[0])[0][None]

    def linearized_outputs() -> Product:
        _, tangent = _linearize(outputs, flat)
        z, back = _pullback(outputs, flat)
        hessian = h.loss.hessian(z[None], h.targets)
        return lambda v: back(hessian(tangent(v[0])[None])[0])[0][None]

    variants = [
        *_graphs_kept(h, theta, "hessian"),
        Variant("hessian", "forward over reverse, anew each time", 1, forward_over_reverse),
        Variant("hessian", "gradient linearized", 1, linearized_gradient),
        *_graphs_kept(h, theta, "ggn"),
        Variant("ggn", "forward tangent anew each time, backward graph kept", 1, jvp_and_vjp),
        Variant("ggn", "outputs linearized, backward graph kept", 1, linearized_outputs),
    ]  # fmt: skip
    if not quick:
        compiled = torch.compile(lambda row, v: jvp(gradient, (row,), (v,))[1], dynamic=False)
        variants.insert(
            4,
            Variant(
                "hessian",
                f"forward over reverse, {COMPILED}",
                1,
                lambda: lambda v: compiled(flat, v[0])[None],
            ),
        )
    return variants


def _linearize(f: Product, x: Tensor) -> tuple[Tensor, Product]:
    result: tuple[Tensor, Product] = linearize(f, x)
    return result


def _pullback(f: Product, x: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
    z, back, *_ = vjp(f, x)
    return z, back


class UnfoldedLeNet(LeNet):
    """LeNet whose convolutions are unfolding and a matrix product, which `vmap` batches well."""

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        x = torch.relu(torch.max_pool2d(_unfolded(x, self.conv1), 2))
        x = torch.relu(torch.max_pool2d(_unfolded(x, self.conv2), 2))
        x = torch.relu(self.fc1(x.flatten(start_dim=1)))
        return self.fc3(torch.relu(self.fc2(x)))  # type: ignore[no-any-return]


def _unfolded(x: Tensor, layer: nn.Conv2d) -> Tensor:
    kernel = layer.weight.shape[-1]
    size = x.shape[-1] - kernel + 1
    y = layer.weight.flatten(1) @ F.unfold(x, kernel)
    return y.reshape(*y.shape[:2], size, size) + layer.bias.reshape(-1, 1, 1)  # type: ignore[union-attr]


def _of_many_trials(h: ModelObjective, trials: int) -> list[Variant]:
    """Return ways to K products at once."""
    theta = problems.weights(h, trials)
    batched = ModelObjective(h.model, h.inputs, h.targets, vectorized=True)
    unfolded = ModelObjective(UnfoldedLeNet().to(h.inputs.device), h.inputs, h.targets, vectorized=True)
    in_turn = ModelObjective(h.model, h.inputs, h.targets, vectorized=False)
    ways = {
        "trials in turn (in use on a CPU)": in_turn,
        "vmap, grouped convolution (in use on a GPU)": batched,
        "vmap, unfolding and batched matrix products": unfolded,
    }
    return [
        Variant(curvature, way, trials, partial(_kept, partial(objective.evaluate, theta), curvature))
        for curvature in problems.CURVATURES
        for way, objective in ways.items()
    ]

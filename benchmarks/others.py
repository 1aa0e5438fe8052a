"""The same gradients, products and steps by other packages, side by side with ours."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ahf_cli.optim import Evaluation, Linearization, ModelObjective
from ahf_cli.optim.layer_statistics import Draw, FisherSample
from ahf_cli.optim.rows import Layout
from benchmarks import problems
from benchmarks.peers import PEERS, ProductAt
from benchmarks.timing import Bench, interleave, spread

OURS, PYTORCH = "ahf", "PyTorch, an ordinary loop"
ITERATIONS = 15
Key = tuple[str, str, str]
"""`product` or `step`, its curvature or `gradient`, and the package."""
Action = Callable[[], Any]
Products = Mapping[str, Mapping[str, ProductAt] | None]
"""By package; None if it is not installed."""


@dataclass(frozen=True)
class PeerEvaluation:
    """An evaluation with the operators of another package."""

    at: Callable[[Callable[..., Any]], Callable[[Tensor], Tensor]]
    ours: Callable[[], Evaluation]
    layout: Layout
    gradient_count: int = 1

    @property
    def loss(self) -> Tensor:
        """h, (1,)."""
        return self.ours().loss

    @property
    def gradient(self) -> Tensor:
        """∇h, (1, P)."""
        return self.ours().gradient

    def operator(self, curvature: Callable[[Linearization], Any]) -> Callable[[Tensor], Tensor]:
        """v ↦ B v by the package."""
        product = self.at(curvature)
        return lambda v: product(v).detach()

    def squared_gradients(self) -> Tensor:
        """The diagonal of the empirical Fisher matrix."""
        return self.ours().squared_gradients()

    def fisher(self, draw: Draw) -> FisherSample:
        """Return the pieces of the Fisher matrix."""
        return self.ours().fisher(draw)

    def select(self, trials: Tensor) -> None:
        """Return None: the packages have one trial."""


@dataclass(frozen=True)
class PeerObjective:
    """The objective of a batch, with the curvature products of another package."""

    inner: ModelObjective
    product: ProductAt

    @property
    def layout(self) -> Layout:
        """Where each parameter tensor lies."""
        return self.inner.layout

    def value(self, parameters: Tensor) -> Tensor:
        """h(θ)."""
        return self.inner.value(parameters)

    def evaluate(self, parameters: Tensor) -> PeerEvaluation:
        """Prepare h at θ; the package does no work before its operator is asked for."""
        return PeerEvaluation(
            lambda _: self.product(parameters), partial(self.inner.evaluate, parameters), self.layout
        )


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Time gradients, products and steps in turn; each ratio is between times of the same round."""
    _use_no_more_cores()
    iterations = 2 if bench.quick else ITERATIONS
    h, other = problems.objective(bench.device), problems.objective(bench.device, seed=1)
    with warnings.catch_warnings():  # imports and first products run deprecated parts of torch
        warnings.simplefilter("ignore", FutureWarning)
        products: Products = {p.name: p.products(other) for p in PEERS}
        actions = _evaluations(other, products)
        # Operators of their own: a step copies its θ into their module.
        actions |= _steps(h, other, {p.name: p.products(other) for p in PEERS}, iterations)
        _check_equal(actions)
        watches = {" ".join(key): bench.stopwatch(action) for key, action in actions.items()}
        samples = interleave(watches, bench.budget(120))
    rows = [_row(key, samples, iterations) for key in actions]
    return rows + [{"by": name, "absent": True} for name, found in products.items() if found is None]


def _use_no_more_cores() -> None:
    """Give all packages as many cores as PyTorch has threads: JAX would take every core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: torch.get_num_threads()])


def _row(key: Key, samples: Mapping[str, list[float]], iterations: int) -> dict[str, Any]:
    kind, what, by = key
    ms, ours = (1e3 * np.asarray(samples[" ".join((kind, what, who))]) for who in (by, OURS))
    plain = 1e3 * np.asarray(samples[f"product gradient {PYTORCH}"])
    row = {"kind": kind, "curvature": what, "by": by, "ms": spread(ms)}
    row |= {"ratio": spread(ms / ours), "plain_ratio": spread(ms / plain)}
    return row | ({"iterations": iterations} if kind == "step" else {})


def _evaluations(h: ModelObjective, products: Products) -> dict[Key, Action]:
    """Return the gradient and the products by each package."""
    theta = problems.weights(h)
    ours = h.evaluate(theta)
    v = ours.gradient.clone()
    actions: dict[Key, Action] = {
        ("product", "gradient", OURS): lambda: h.evaluate(theta).gradient,
        ("product", "gradient", PYTORCH): problems.plain_gradient(h, theta),
    }
    for what in ("gradient", *problems.CURVATURES):
        if what in problems.CURVATURES:
            actions["product", what, OURS] = partial(ours.operator(problems.CURVATURES[what]), v)
        for name, found in products.items():
            if found and what in found:
                actions["product", what, name] = partial(found[what](theta), v)
    return actions


def _check_equal(actions: Mapping[Key, Action]) -> None:
    """Raise RuntimeError if a package computes something else: then its time says nothing."""
    expected: dict[str, Tensor] = {}
    for (kind, what, by), action in actions.items():
        if by == PYTORCH:
            continue  # its gradient lies in the parameters
        found = (action() if kind == "product" else action()[1].direction).detach().reshape(-1)
        ours = expected.setdefault(kind + what, found)
        error = float(torch.linalg.vector_norm(found - ours) / torch.linalg.vector_norm(ours))
        if not error < (1e-3 if kind == "product" else 0.05):  # CG amplifies float32 rounding
            raise RuntimeError(f"{kind} {what} by {by} differs from ours by {error:.1e}")


def _steps(
    h: ModelObjective, other: ModelObjective, products: Products, iterations: int
) -> dict[Key, Action]:
    """Return the same HF steps with our products and with each package's."""
    actions: dict[Key, Action] = {}
    for curvature in problems.CURVATURES:
        optimizer = problems.fixed_length("hf", curvature, iterations)
        state = problems.warm_state(optimizer, "hf", h, other)
        actions["step", curvature, OURS] = partial(optimizer.step, state, h, other)
        for name, found in products.items():
            if found:
                theirs = PeerObjective(other, found[curvature])
                actions["step", curvature, name] = partial(optimizer.step, state, h, theirs)
    return actions

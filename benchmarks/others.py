"""The same products and steps by `curvlinops-for-pytorch` and `backpack-for-pytorch`, side by side with ours.

Both packages are called as their documentation shows: every product is computed anew from the network (or, in
BackPACK's case, from one forward pass a step).
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ahf_cli.optim import Linearization, ModelObjective, gauss_newton, hessian
from ahf_cli.optim.linearization import GraphLinearization
from ahf_cli.optim.rows import Layout
from ahf_cli.tasks.models import LeNet
from benchmarks import problems
from benchmarks.timing import Bench, interleave, spread

OURS, BACKPACK, CURVLINOPS = "ahf", "backpack-for-pytorch", "curvlinops-for-pytorch"
KEPT = f"{BACKPACK}, gradient's graph kept"
Key = tuple[str, str]
"""Which products, and by whom."""
Action = Callable[[], Any]
Actions = Mapping[Key, Action | None]
"""None where the package is not installed."""


class BackpackEvaluation(GraphLinearization):
    """h of a plain module at its own parameters, whose products are BackPACK's, each computed anew."""

    def __init__(self, layout: Layout, model: nn.Module, inputs: Tensor, targets: Tensor):
        outputs = model(inputs)
        super().__init__(
            layout,
            tuple(model.parameters()),
            nn.functional.cross_entropy(outputs, targets).reshape(1),
            outputs,
        )
        self._hessian = importlib.import_module("backpack.hessianfree.hvp").hessian_vector_product
        self._ggn = importlib.import_module("backpack.hessianfree.ggnvp").ggn_vector_product_from_plist

    def operator(self, curvature: Callable[[Linearization], Any]) -> Callable[[Tensor], Tensor]:
        """v ↦ B v by BackPACK."""
        return self.hessian_product if curvature is hessian else self.gauss_newton_product

    def hessian_product(self, vectors: Tensor) -> Tensor:
        """∇²h v."""
        return self.layout.join(self._hessian(self.losses[0], self.leaves, self._pieces(vectors)))

    def hessian_product_with(self, gradients: Sequence[Tensor], vectors: Tensor) -> Tensor:
        """∇²h v from the gradient's graph, which BackPACK takes if its caller keeps it."""
        pieces = self._pieces(vectors)
        return self.layout.join(self._hessian(self.losses[0], self.leaves, pieces, grad_params=gradients))

    def gauss_newton_product(self, vectors: Tensor) -> Tensor:
        """Jᵀ H_L J v."""
        pieces = self._pieces(vectors)
        return self.layout.join(self._ggn(self.losses[0], self.outputs, self.leaves, pieces))

    def _pieces(self, vectors: Tensor) -> list[Tensor]:
        return [piece[0] for piece in self.layout.split(vectors)]


@dataclass(frozen=True)
class BackpackObjective:
    """The objective of the same batch with BackPACK's products."""

    inner: ModelObjective

    @property
    def layout(self) -> Layout:
        """Where each parameter tensor lies."""
        return self.inner.layout

    def value(self, parameters: Tensor) -> Tensor:
        """h(θ)."""
        return self.inner.value(parameters)

    def evaluate(self, parameters: Tensor) -> BackpackEvaluation:
        """Run the model at θ, once."""
        model = _module_at(self.inner, parameters)
        return BackpackEvaluation(self.layout, model, self.inner.inputs, self.inner.targets)


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Time products in turn, then steps in turn; each ratio is that of the same round."""
    iterations = 2 if bench.quick else 50
    with warnings.catch_warnings():  # imports and first products run what torch itself has deprecated
        warnings.simplefilter("ignore", FutureWarning)
        products = _products(bench)
    return [
        *_rows(bench, {"kind": "product"}, products, 10),
        *_rows(bench, {"kind": "step", "iterations": iterations}, _steps(bench, iterations), 50),
    ]


def _rows(bench: Bench, head: dict[str, Any], actions: Actions, seconds: float) -> list[dict[str, Any]]:
    """Measure actions; None stands for one whose package is not installed."""
    names = {f"{curvature} {by}": (curvature, by) for curvature, by in actions}
    watches = {name: bench.stopwatch(action) for name, key in names.items() if (action := actions[key])}
    samples = interleave(watches, bench.budget(seconds))
    rows = []
    for name, (curvature, by) in names.items():
        row = {**head, "curvature": curvature, "by": by}
        if name in samples:
            ms, ours = 1e3 * np.asarray(samples[name]), 1e3 * np.asarray(samples[f"{curvature} {OURS}"])
            row |= {"ms": spread(ms), "ratio": spread(ms / ours)}
        rows.append(row)
    return rows


def _installed(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def _module_at(h: ModelObjective, parameters: Tensor) -> nn.Module:
    """Return a plain LeNet with these parameters, (1, P)."""
    model = LeNet().to(parameters.device)
    with torch.no_grad():
        for parameter, piece in zip(model.parameters(), h.layout.split(parameters), strict=True):
            parameter.copy_(piece[0])
    return model


def _products(bench: Bench) -> Actions:
    """Return each product by each package."""
    h = problems.objective(bench.device)
    theta = problems.weights(h)
    ours = h.evaluate(theta)
    v = ours.gradient.clone()
    theirs = BackpackObjective(h).evaluate(theta) if _installed("backpack") else None
    their_hessian, their_ggn = _curvlinops(h, theta) if _installed("curvlinops") else (None, None)
    actions: dict[Key, Action | None] = {
        ("hessian", OURS): partial(ours.operator(hessian), v),
        ("hessian", BACKPACK): partial(theirs.hessian_product, v) if theirs else None,
        ("hessian", CURVLINOPS): partial(their_hessian.__matmul__, v[0]) if their_hessian else None,
        ("ggn", OURS): partial(ours.operator(gauss_newton), v),
        ("ggn", BACKPACK): partial(theirs.gauss_newton_product, v) if theirs else None,
        ("ggn", CURVLINOPS): partial(their_ggn.__matmul__, v[0]) if their_ggn else None,
    }
    if theirs:
        gradients = torch.autograd.grad(theirs.losses[0], theirs.leaves, create_graph=True)
        actions["hessian", KEPT] = lambda: theirs.hessian_product_with(gradients, v)
    _check_equal(actions)
    return actions


def _curvlinops(h: ModelObjective, theta: Tensor) -> tuple[Any, Any]:
    package, model = importlib.import_module("curvlinops"), _module_at(h, theta)
    arguments = (model, nn.CrossEntropyLoss(), list(model.parameters()), [(h.inputs, h.targets)])
    return (
        package.HessianLinearOperator(*arguments, check_deterministic=False),
        package.GGNLinearOperator(*arguments, check_deterministic=False),
    )


def _check_equal(actions: Actions) -> None:
    """Raise where a package computes something else: then its time says nothing."""
    expected: dict[str, Tensor] = {}
    for (curvature, by), action in actions.items():
        if action is None:
            continue
        found = action().reshape(-1)
        ours = expected.setdefault(curvature, found)
        error = float(torch.linalg.vector_norm(found - ours) / torch.linalg.vector_norm(ours))
        if not error < 1e-3:
            raise RuntimeError(f"{curvature} product by {by} differs from ours by {error:.1e}")


def _steps(bench: Bench, iterations: int) -> Actions:
    """Return the same HF steps with our products and with BackPACK's."""
    h, other = problems.objective(bench.device), problems.objective(bench.device, seed=1)
    theirs = BackpackObjective(other) if _installed("backpack") else None
    actions: dict[Key, Action | None] = {}
    for curvature in problems.CURVATURES:
        optimizer = problems.fixed_length("hf", curvature, iterations)
        state = problems.warm_state(optimizer, "hf", h, other)
        actions[curvature, OURS] = partial(optimizer.step, state, h, other)
        actions[curvature, BACKPACK] = partial(optimizer.step, state, h, theirs) if theirs else None
    return actions

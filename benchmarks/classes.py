"""The torch optimizers at their defaults, beside L-BFGS and PyTorchHessianFree, on seven small problems.

PyTorchHessianFree (repository ltatzel/PyTorchHessianFree) is on no package index; put its folder on
PYTHONPATH.  Without it the table has one row with its name.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ahf_cli.optim import AdaptiveHessianFree, HessianFree
from benchmarks.timing import Bench

Forward = Callable[[], tuple[Tensor, Tensor]]
"""() ↦ loss and outputs."""
Curve = list[tuple[int, float]]
"""Forward passes so far, and the loss on the whole batch."""
PASSES = 300
"""Forward passes of a run."""
PEER = "PyTorchHessianFree"


@dataclass(frozen=True)
class Problem:
    """A full-batch problem; `make` draws it anew from one seed."""

    name: str
    make: Callable[[], tuple[list[nn.Parameter], Forward]]
    outputs: bool = True
    """whether the loss is convex in the outputs, so that B is the Gauss-Newton matrix"""


def _small_network() -> tuple[list[nn.Parameter], Forward]:
    x, y = torch.rand(64, 7), torch.rand(64, 3)
    model = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))

    def forward() -> tuple[Tensor, Tensor]:
        z = model(x)
        return F.mse_loss(z, y), z

    return list(model.parameters()), forward


def _rosenbrock(size: int) -> Callable[[], tuple[list[nn.Parameter], Forward]]:
    def make() -> tuple[list[nn.Parameter], Forward]:
        p = nn.Parameter(torch.full((size,), -1.2))

        def forward() -> tuple[Tensor, Tensor]:
            return (100 * (p[1:] - p[:-1] ** 2) ** 2 + (1 - p[:-1]) ** 2).sum(), p

        return [p], forward

    return make


def _logistic_regression() -> tuple[list[nn.Parameter], Forward]:
    scale = torch.logspace(0, -2, 30)
    x = torch.randn(500, 30) * scale
    y = ((x / scale) @ torch.randn(30) > 0).float()
    w = nn.Parameter(torch.zeros(30))

    def forward() -> tuple[Tensor, Tensor]:
        z = x @ w
        return F.binary_cross_entropy_with_logits(z, y) + 5e-4 * w.square().sum(), z

    return [w], forward


def _adding(length: int = 20) -> tuple[list[nn.Parameter], Forward]:
    x = torch.rand(64, length, 2)
    x[..., 1] = 0
    x[:, [3, 11], 1] = 1
    y = (x[..., 0] * x[..., 1]).sum(1, keepdim=True)
    body, head = nn.RNN(2, 16, batch_first=True), nn.Linear(16, 1)

    def forward() -> tuple[Tensor, Tensor]:
        z = head(body(x)[0][:, -1])
        return F.mse_loss(z, y), z

    return [*body.parameters(), *head.parameters()], forward


def _autoencoder() -> tuple[list[nn.Parameter], Forward]:
    widths = (25, 40, 20, 10, 4, 10, 20, 40, 25)
    # Smooth curves over 25 points: four numbers describe each of them.
    t = torch.linspace(0, 1, 25)
    a = torch.rand(128, 4, 1)
    x = torch.sigmoid(4 * a[:, 0] * torch.sin(6 * a[:, 1] * t + 6 * a[:, 2]) + 2 * a[:, 3] - 1)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    model = nn.Sequential(*layers[:-1])

    def forward() -> tuple[Tensor, Tensor]:
        z = model(x)
        return F.binary_cross_entropy_with_logits(z, x), z

    return list(model.parameters()), forward


def _equation() -> tuple[list[nn.Parameter], Forward]:
    model = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1))
    t = torch.linspace(0, 3.1416, 60)[:, None].requires_grad_()
    ends = torch.tensor([[0.0], [3.1416]])

    def forward() -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            u = model(t)
            (first,) = torch.autograd.grad(u.sum(), t, create_graph=True)
            (second,) = torch.autograd.grad(first.sum(), t, create_graph=True)
            z = torch.cat([(second + t.sin()) / 60**0.5, model(ends)])
            return z.square().sum(), z

    return list(model.parameters()), forward


PROBLEMS = (
    Problem("small network, random targets", _small_network),
    Problem("Rosenbrock, 2 parameters", _rosenbrock(2), outputs=False),
    Problem("Rosenbrock, 10 parameters", _rosenbrock(10), outputs=False),
    Problem("logistic regression with penalty", _logistic_regression),
    Problem("adding problem, recurrent net", _adding),
    Problem("deep autoencoder", _autoencoder),
    Problem("equation u'' = −sin t", _equation),
)


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Run every optimizer on every problem, for equal numbers of forward passes."""
    if torch.get_num_threads() > 1:
        return []  # the losses are the same
    found = PROBLEMS[:2] if bench.quick else PROBLEMS
    return [
        {
            "problem": problem.name, "optimizer": name, "passes": passes,
            "first": curve[0][1], "last": curve[-1][1], "curve": curve,
            "rises": sum(b[1] > a[1] for a, b in pairwise(curve)),
        }
        for problem in found
        for passes in [60 if bench.quick else PASSES]
        for name, run in RUNS.items()
        for curve in [_curve(problem, run, passes)]
    ]  # fmt: skip


def _curve(problem: Problem, run: Callable[..., Iterator[None]], passes: int) -> Curve:
    """Return the losses after the steps that begin within the number of forward passes."""
    torch.manual_seed(0)
    parameters, forward = problem.make()
    count = 0

    def counted() -> tuple[Tensor, Tensor]:
        nonlocal count
        count += 1
        return forward()

    curve = [(0, _loss(forward))]
    for _ in run(parameters, counted, problem.outputs):
        if count > passes:
            break
        curve.append((count, _loss(forward)))
    return curve


def _loss(forward: Forward) -> float:
    return float(f"{float(forward()[0].detach()):.4g}")


def _ours(kind: type[HessianFree | AdaptiveHessianFree]) -> Callable[..., Iterator[None]]:
    def run(parameters: list[nn.Parameter], forward: Forward, outputs: bool) -> Iterator[None]:
        optimizer = kind(parameters)
        while True:
            optimizer.step(forward if outputs else lambda: forward()[0])
            yield

    return run


def _lbfgs(parameters: list[nn.Parameter], forward: Forward, outputs: bool) -> Iterator[None]:
    optimizer = torch.optim.LBFGS(parameters, max_iter=5, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = forward()[0]
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    while True:
        optimizer.step(closure)  # type: ignore[no-untyped-call]
        yield


def _peer(parameters: list[nn.Parameter], forward: Forward, outputs: bool) -> Iterator[None]:
    try:
        kind = importlib.import_module("hessianfree.optimizer").HessianFree
    except ModuleNotFoundError:
        return
    optimizer = kind(parameters, curvature_opt="ggn" if outputs else "hessian")
    while True:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            try:
                optimizer.step(forward=forward)
            except (UnboundLocalError, RuntimeError):  # it fails at convergence, or on inner derivatives
                return
        yield


RUNS: dict[str, Callable[..., Iterator[None]]] = {
    "HessianFree()": _ours(HessianFree),
    "AdaptiveHessianFree()": _ours(AdaptiveHessianFree),
    "torch.optim.LBFGS": _lbfgs,
    PEER: _peer,
}

"""`HessianFree` and `AdaptiveHessianFree` in a user's own loop."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ahf_cli.optim import AdaptiveHessianFree, HessianFree, ModelObjective, compose
from ahf_cli.recipes.builtin import RECIPES
from tests.closures import OPTIMIZERS, conv_problem, cross_entropy, needs_outputs


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_halves_the_loss_in_forty_steps(name: str) -> None:
    model, x, y = conv_problem()
    optimizer = OPTIMIZERS[name](model.parameters())
    closure = cross_entropy(model, x, y, needs_outputs(name))
    losses = [float(optimizer.step(closure)) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0] and not optimizer.diverged


@pytest.mark.parametrize("name", ["hf", "hf_ggn"])
def test_an_optimizer_takes_the_steps_of_one_row_of_the_core(name: str) -> None:
    model, x, y = conv_problem()
    optimizer = OPTIMIZERS[name](model.parameters())
    values = {"lr": 0.8, "damping": 3.0} if needs_outputs(name) else {"lr": 1.0, "damping": 10.0}
    curvature = "ggn" if needs_outputs(name) else "hessian"
    core = compose(RECIPES["hf"].derive("x", {"curvature": curvature, "curvature_batch": "same"}).structure)
    objective = ModelObjective(copy.deepcopy(model), x, y)
    state = core.init(objective.layout.join([p.detach() for p in model.parameters()]), values)
    for _ in range(6):
        optimizer.step(cross_entropy(model, x, y, needs_outputs(name)))
        state, _ = core.step(state, objective)
    found = torch.cat([p.detach().ravel() for p in model.parameters()])
    torch.testing.assert_close(found, state.parameters[0], rtol=1e-8, atol=1e-10)


def test_a_second_batch_carries_the_curvature() -> None:
    model, x, y = conv_problem()
    optimizer = HessianFree(model.parameters())
    first, second = cross_entropy(model, x[:10], y[:10], False), cross_entropy(model, x[10:], y[10:], False)
    start = copy.deepcopy(model)
    optimizer.step(first, second)
    core = compose(RECIPES["hf"].structure)
    objectives = [ModelObjective(start, x[:10], y[:10]), ModelObjective(start, x[10:], y[10:])]
    theta = objectives[0].layout.join([p.detach() for p in start.parameters()])
    state, _ = core.step(core.init(theta, {"lr": 1.0, "damping": 10.0}), *objectives)
    found = torch.cat([p.detach().ravel() for p in model.parameters()])
    torch.testing.assert_close(found, state.parameters[0])


def test_direction_leaves_everything_but_the_warm_start() -> None:
    model, x, y = conv_problem()
    optimizer, twin = HessianFree(model.parameters()), copy.deepcopy(model)
    closure = cross_entropy(model, x, y, False)
    direction = optimizer.direction(closure)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert optimizer.damping == 10.0
    assert [d.shape for d in direction] == [p.shape for p in model.parameters()]
    # As the gradient of another optimizer it is the same step.
    sgd = torch.optim.SGD(twin.parameters(), lr=1.0)
    for p, d in zip(twin.parameters(), direction, strict=True):
        p.grad = -d
    sgd.step()
    fresh = HessianFree(model.parameters())
    fresh.step(closure)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert optimizer.direction(closure)[0].abs().sum() > 0


def test_any_loss_has_its_gauss_newton_matrix() -> None:
    # Least squares on a linear model: one undamped Gauss-Newton step solves it.
    torch.manual_seed(0)
    x, y = torch.randn(30, 4, dtype=torch.float64), torch.randn(30, 1, dtype=torch.float64)
    model = nn.Linear(4, 1).double()
    optimizer = HessianFree(model.parameters(), curvature="ggn", damping=1e-12, max_iterations=100)

    def closure() -> tuple[Tensor, Tensor]:
        z = model(x)
        return ((z - y) ** 2).mean(), z

    optimizer.step(closure)
    design = torch.cat([x, torch.ones(30, 1, dtype=torch.float64)], 1)
    solution = torch.linalg.lstsq(design, y).solution.ravel()
    found = torch.cat([model.weight.detach().ravel(), model.bias.detach()])
    torch.testing.assert_close(found, solution, rtol=1e-6, atol=1e-8)


def test_divergence_keeps_the_last_finite_parameters() -> None:
    p = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = HessianFree([p], lr=1e300, damping=1.0)
    optimizer.step(lambda: (p**4).sum())
    assert optimizer.diverged and p.tolist() == [3.0, 4.0]
    optimizer.step(lambda: (p**4).sum())
    assert p.tolist() == [3.0, 4.0]


def unused(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [*model.named_parameters(), ("extra", nn.Parameter(torch.zeros(2, dtype=torch.float64)))]


def frozen(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    next(iter(model.parameters())).requires_grad_(False)
    return list(model.named_parameters())


def mixed(model: nn.Module) -> list[nn.Parameter]:
    return [*model.parameters(), nn.Parameter(torch.zeros(2))]


@pytest.mark.parametrize(
    ("parameters", "options", "message"),
    [
        (unused, {}, r"does not depend on extra"),
        (frozen, {}, r"conv1.weight: requires_grad is False"),
        (mixed, {}, r"one dtype and device"),
        (lambda m: m.parameters(), {"lr": 0}, r"lr must be in \(0, inf\), got 0"),
        (lambda m: m.parameters(), {"damping": -1.0}, r"damping must be in \(0, inf\), got -1.0"),
        (
            lambda m: m.parameters(),
            {"curvature": "gnn"},
            r"curvature must be one of hessian, ggn, fisher, got 'gnn'",
        ),
        (
            lambda m: m.parameters(),
            {"curvatur": "ggn"},
            r"unknown choice 'curvatur'; did you mean 'curvature'",
        ),
        (lambda m: m.parameters(), {"solver": "lu"}, r"solver must be one of cg, got 'lu'"),
    ],
)
def test_misuse_is_named(
    parameters: Callable[[nn.Module], Any], options: dict[str, Any], message: str
) -> None:
    model, x, y = conv_problem()
    with pytest.raises((ValueError, RuntimeError), match=message):
        HessianFree(parameters(model), **options).step(cross_entropy(model, x, y, False))


def test_beta2_outside_its_interval_is_refused() -> None:
    with pytest.raises(ValueError, match=r"beta2 must be in \[0, 1\), got 1.0"):
        AdaptiveHessianFree(conv_problem()[0].parameters(), beta2=1.0)


def test_a_direction_that_is_not_finite_is_no_warm_start() -> None:
    model, x, y = conv_problem()
    optimizer = HessianFree(model.parameters())
    bad = cross_entropy(model, x * torch.nan, y, False)
    assert not torch.isfinite(optimizer.direction(bad)[0]).all()
    optimizer.step(cross_entropy(model, x, y, False))
    assert not optimizer.diverged


def test_unused_parameters_are_named_at_every_call() -> None:
    model, x, y = conv_problem()
    optimizer = HessianFree(unused(model))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="does not depend on extra"):
            optimizer.step(cross_entropy(model, x, y, False))


def test_the_batch_of_the_curvature_is_asked_for() -> None:
    model, x, y = conv_problem()
    closure = cross_entropy(model, x, y, False)
    optimizer = HessianFree(model.parameters(), curvature_batch="independent")
    with pytest.raises(ValueError, match="independent needs a second closure"):
        optimizer.step(closure)
    optimizer.step(closure, closure)


def test_only_the_curvature_closure_needs_outputs() -> None:
    model, x, y = conv_problem()
    optimizer = HessianFree(model.parameters(), curvature="ggn")
    optimizer.step(cross_entropy(model, x, y, False), cross_entropy(model, x, y, True))
    with pytest.raises(ValueError, match="ggn needs the outputs"):
        optimizer.step(cross_entropy(model, x, y, True), cross_entropy(model, x, y, False))


def test_the_direction_has_the_parts_of_the_step() -> None:
    """`direction` has weight decay and backtracking, as `step` has."""
    model, x, y = conv_problem()
    options: dict[str, Any] = {"regularization": "l2", "weight_decay": 0.1, "backtracking": "martens"}
    one, two = (HessianFree(model.parameters(), curvature="ggn", damping=0.01, **options) for _ in range(2))
    closure = cross_entropy(model, x, y, True)
    found = two.direction(closure)
    one.step(closure)
    assert one.last_step is not None
    torch.testing.assert_close(torch.cat([d.flatten() for d in found]), one.last_step.direction[0])

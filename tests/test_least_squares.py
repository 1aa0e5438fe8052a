"""Levenberg-Marquardt with the whole Jacobian: minima, refused steps, rows, and the acceleration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from torch import Tensor, nn

from ahf_cli.optim import Layout, ModelObjective
from ahf_cli.optim.least_squares import DampedLeastSquares, NormalEquations, lm, lm_geodesic
from ahf_cli.optim.losses import LeastSquares, MeanLoss, SquaredError
from ahf_cli.optim.state import State

Residual = Callable[[Tensor], Tensor]
VARIANTS = pytest.mark.parametrize("method", [lm, lm_geodesic], ids=["plain", "geodesic"])


class Fit:
    """h = ½ ‖ρ(θ)‖² for a function of one θ."""

    def __init__(self, residual: Residual, size: int):
        self.residual, self.size = residual, size
        self.layout = Layout.of([("theta", torch.empty(size))])

    def residuals(self, parameters: Tensor) -> Tensor:
        return torch.stack([self.residual(own) for own in parameters])

    def jacobian(self, parameters: Tensor, row: int) -> Tensor:
        found: Tensor = torch.func.jacrev(self.residual)(parameters[row])
        return found

    def value(self, parameters: Tensor) -> Tensor:
        return 0.5 * self.residuals(parameters).square().sum(dim=-1)

    def evaluate(self, parameters: Tensor) -> object:
        raise NotImplementedError


def rosenbrock(theta: Tensor) -> Tensor:
    return torch.stack([10 * (theta[1] - theta[0] ** 2), 1 - theta[0]])


TIMES = torch.linspace(0, 4, 25, dtype=torch.float64)


def decay(theta: Tensor) -> Tensor:
    """Residuals of a sum of two exponentials, fitted to noisy data."""
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.01, 25))
    data = 2 * torch.exp(-1.5 * TIMES) + torch.exp(-0.3 * TIMES) + noise
    return theta[0] * torch.exp(-theta[1] * TIMES) + theta[2] * torch.exp(-theta[3] * TIMES) - data


def started(method: DampedLeastSquares, rows: list[list[float]], damping: float | list[float] = 1.0) -> State:
    values = torch.tensor(damping, dtype=torch.float64)
    return method.init(torch.tensor(rows, dtype=torch.float64), {"damping": values})


def run(method: DampedLeastSquares, fit: Fit, state: State, steps: int) -> tuple[State, list[float]]:
    losses = []
    for _ in range(steps):
        state, info = method.step(state, fit)  # type: ignore[arg-type]
        losses.append(float(info.loss.max()))
        assert bool((info.loss_after <= info.loss).all())
    return state, losses


@VARIANTS
@pytest.mark.parametrize(
    ("residual", "start"),
    [(rosenbrock, [-1.2, 1.0]), (decay, [1.0, 1.0, 0.5, 0.1])],
    ids=["rosenbrock", "decay"],
)
def test_a_fit_ends_where_scipy_ends(
    method: DampedLeastSquares, residual: Residual, start: list[float]
) -> None:
    fit = Fit(residual, len(start))
    state, losses = run(method, fit, started(method, [start]), 60)
    limits = dict.fromkeys(("xtol", "ftol", "gtol"), 1e-15)
    found = least_squares(
        lambda x: residual(torch.from_numpy(x)).numpy(), start, method="lm", **limits
    )  # fmt: skip
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(found.cost, rel=1e-12, abs=1e-25)
    expected = torch.from_numpy(found.x)
    torch.testing.assert_close(state.parameters[0], expected, rtol=1e-6, atol=1e-9)


@VARIANTS
@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_a_direction_solves_the_damped_normal_equations(
    method: DampedLeastSquares, shape: tuple[int, int]
) -> None:
    torch.manual_seed(1)
    a, b = torch.randn(shape, dtype=torch.float64), torch.randn(shape[0], dtype=torch.float64)
    fit = Fit(lambda theta: a @ theta + b, shape[1])
    state = started(method, [[0.0] * shape[1]], 0.3)
    after, info = method.step(state, fit)  # type: ignore[arg-type]
    dense = torch.linalg.solve(a.T @ a + 0.3 * torch.eye(shape[1], dtype=torch.float64), -a.T @ b)
    # A linear residual has no second derivative: the acceleration is 0.
    torch.testing.assert_close(after.parameters[0], dense, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(info.gradient[0], a.T @ b)
    model = (a.T @ b) @ dense + 0.5 * (a @ dense) @ (a @ dense)
    torch.testing.assert_close(info.model_value[0], model)
    assert float(info.reduction_ratio) == pytest.approx(1, abs=1e-9)
    assert float(after.damping) == pytest.approx(0.1)  # a ratio of 1 divides λ by 3
    assert int(info.products) == min(shape) // 2 and info.gradients == 1


def test_the_acceleration_is_that_of_the_second_derivative_along_the_direction() -> None:
    torch.manual_seed(2)
    a = torch.randn(6, 3, dtype=torch.float64)
    c = 0.05 * torch.randn(6, 3, 3, dtype=torch.float64)
    fit = Fit(lambda theta: a @ theta + torch.einsum("mij,i,j->m", c, theta, theta) + 1, 3)
    start = [[0.3, -0.2, 0.1]]
    after, _ = lm_geodesic.step(started(lm_geodesic, start, 0.2), fit)  # type: ignore[arg-type]
    theta = torch.tensor(start[0], dtype=torch.float64)
    system = NormalEquations(fit.jacobian(theta[None], 0))
    factor = system.factor(torch.tensor(0.2, dtype=torch.float64))
    assert factor is not None
    direction = system.solve(factor, fit.residual(theta))
    bend = 2 * torch.einsum("mij,i,j->m", c, direction, direction)  # exact for a quadratic residual
    expected = theta + direction + 0.5 * system.solve(factor, bend)
    torch.testing.assert_close(after.parameters[0], expected, rtol=1e-9, atol=1e-11)
    plain, _ = lm.step(started(lm, start, 0.2), fit)  # type: ignore[arg-type]
    torch.testing.assert_close(plain.parameters[0], theta + direction)
    assert not torch.allclose(plain.parameters, after.parameters)


def test_a_step_that_does_not_help_is_tried_again_with_more_damping() -> None:
    fit = Fit(rosenbrock, 2)
    state = started(lm, [[-1.2, 1.0]], 1e-8)
    after, info = lm.step(state, fit)  # type: ignore[arg-type]
    assert float(info.damping) > 1e-8 and info.losses > 1
    assert float(info.loss_after) < float(info.loss) and float(info.update_l2) > 0
    tried = 1e-8
    for n in range(info.losses - 1):
        tried *= 2 ** (n + 1)
    assert float(info.damping) == pytest.approx(tried)
    assert float(after.damping) < tried


@VARIANTS
def test_at_a_minimum_nothing_moves(method: DampedLeastSquares) -> None:
    state = started(method, [[1.0, 1.0]])
    after, info = method.step(state, Fit(rosenbrock, 2))  # type: ignore[arg-type]
    assert torch.equal(after.parameters, state.parameters) and torch.equal(after.damping, state.damping)
    assert float(info.step_size) == 0 and bool(info.finite.all())


@VARIANTS
def test_rows_do_not_touch(method: DampedLeastSquares) -> None:
    starts, damping = [[-1.2, 1.0], [3.0, -2.0], [float("nan"), 0.0], [0.5, 0.5]], [1.0, 1e-6, 1.0, 100.0]
    fit = Fit(rosenbrock, 2)
    together = started(method, starts, damping)
    for _ in range(6):
        together, _ = method.step(together, fit)  # type: ignore[arg-type]
    for row in (0, 1, 3):
        alone = started(method, [starts[row]], [damping[row]])
        for _ in range(6):
            alone, _ = method.step(alone, fit)  # type: ignore[arg-type]
        assert torch.equal(alone.parameters[0], together.parameters[row])
        assert torch.equal(alone.damping[0], together.damping[row])
    assert together.diverged_at.tolist() == [0, 0, 1, 0]


def problem(loss: object) -> tuple[ModelObjective, Tensor]:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(10, 3, dtype=torch.float64), torch.randn(10, 2, dtype=torch.float64)
    objective = ModelObjective(net, x, y, loss)  # type: ignore[arg-type]
    return objective, torch.randn(2, objective.layout.size, dtype=torch.float64)


def test_a_regression_has_residuals_whose_squares_are_its_loss() -> None:
    objective, theta = problem(SquaredError())
    at, residuals = objective.evaluate(theta), objective.residuals(theta)
    torch.testing.assert_close(0.5 * residuals.square().sum(dim=-1), at.loss)
    for row in range(2):
        jacobian = objective.jacobian(theta, row)
        assert jacobian.shape == (20, theta.shape[1])
        torch.testing.assert_close(jacobian.T @ residuals[row], at.gradient[row])
        v = torch.randn_like(theta)
        product = at.vjp(at.loss_hessian()(at.jvp(v)))
        torch.testing.assert_close(product[row], jacobian.T @ (jacobian @ v[row]))


def test_a_regression_with_own_batches_has_own_jacobians() -> None:
    objective, theta = problem(SquaredError())
    x, y = torch.stack([objective.inputs, -objective.inputs]), torch.stack([objective.targets] * 2)
    own = ModelObjective(objective.model, x, y, SquaredError(), own_batches=True)
    other = ModelObjective(objective.model, x[1], y[1], SquaredError())
    torch.testing.assert_close(own.jacobian(theta, 0), objective.jacobian(theta, 0))
    torch.testing.assert_close(own.jacobian(theta, 1), other.jacobian(theta, 1))


def test_the_weights_of_least_squares_are_in_its_value_and_curvature() -> None:
    torch.manual_seed(4)
    z = torch.randn(1, 6, 2, dtype=torch.float64, requires_grad=True)
    w = torch.rand(6, 3, dtype=torch.float64)
    loss = LeastSquares()
    value = loss.value(z, w)
    torch.testing.assert_close(value[0], (0.5 * w[:, 0] * z[0, :, 0].square()).mean())
    (gradient,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    v = torch.randn_like(z)
    (expected,) = torch.autograd.grad(gradient, z, v)
    torch.testing.assert_close(loss.hessian(z, w)(v), expected)


def test_other_losses_and_several_ranks_are_refused() -> None:
    objective, theta = problem(MeanLoss(lambda z, y: (z - y).abs().mean()))
    with pytest.raises(ValueError, match="lm needs a loss that is a sum of squares, such as least_squares"):
        lm.step(lm.init(theta, {"damping": 1.0}), objective)
    objective, theta = problem(SquaredError())
    from ahf_cli.optim.distributed import DistributedObjective

    with pytest.raises(ValueError, match="lm needs the residuals of one process"):
        lm.step(lm.init(theta, {"damping": 1.0}), DistributedObjective(objective))


@VARIANTS
def test_a_state_continues_bitwise(method: DampedLeastSquares) -> None:
    fit = Fit(decay, 4)
    whole, _ = run(method, fit, started(method, [[1.0, 1.0, 0.5, 0.1]]), 8)
    half, _ = run(method, fit, started(method, [[1.0, 1.0, 0.5, 0.1]]), 4)
    again, _ = run(method, fit, replace(State(**half.state_dict())), 4)
    assert torch.equal(again.parameters, whole.parameters) and torch.equal(again.damping, whole.damping)

"""Curvature products and Hessians of losses, against dense matrices and closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ahf_cli.optim import gauss_newton, hessian
from ahf_cli.optim.losses import MeanLoss, SoftmaxCrossEntropy, SquaredError, autograd_hessian
from tests.problems import MODELS, dense_loss, dense_outputs, problem, rows


def assert_equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)  # a few hundred float64 roundings


def output_hessian(z: Tensor) -> Tensor:
    """∂²L/∂z² of the mean cross-entropy, written out; (N, C) → (N·C, N·C)."""
    p = torch.softmax(z, -1)
    blocks = [(torch.diag(q) - torch.outer(q, q)) / len(z) for q in p]
    result: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return result


@pytest.mark.parametrize(("explicit", "vectorized"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("name", MODELS)
def test_loss_gradient_and_products_equal_dense_ones(name: str, explicit: bool, vectorized: bool) -> None:
    objective = problem(name, vectorized=vectorized, explicit=explicit)
    theta, v = rows(objective, 3), rows(objective, 3, seed=2)
    here = objective.evaluate(theta)
    exact, outer = here.operator(hessian)(v), here.operator(gauss_newton)(v)
    assert_equal(objective.value(theta), here.loss)
    for k in range(3):
        loss = dense_loss(objective)
        assert_equal(here.loss[k], loss(theta[k]))
        assert_equal(here.gradient[k], torch.func.grad(loss)(theta[k]))
        dense = torch.func.hessian(loss)(theta[k])
        assert_equal(exact[k], dense @ v[k])
        jacobian = torch.func.jacrev(dense_outputs(objective))(theta[k]).flatten(0, 1)
        ggn = jacobian.T @ output_hessian(dense_outputs(objective)(theta[k])) @ jacobian
        assert_equal(outer[k], ggn @ v[k])


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_products_of_one_evaluation_do_not_disturb_each_other(name: str, explicit: bool) -> None:
    # A Gauss-Newton product builds a graph that knows less than the Hessian needs.
    objective = problem(name, explicit=explicit)
    theta, v = rows(objective, 2), rows(objective, 2, seed=2)
    exact = objective.evaluate(theta).operator(hessian)(v)
    shared = objective.evaluate(theta)
    product = shared.operator(gauss_newton)
    ggn = product(v)
    assert_equal(shared.operator(hessian)(v), exact)
    assert_equal(product(v), ggn)


def test_softmax_regression_has_its_closed_form() -> None:
    # Linear in θ: the Hessian is the Gauss-Newton matrix, Σ_n (diag p − ppᵀ) ⊗ x̃x̃ᵀ / N with x̃ = (x, 1).
    objective = problem("softmax_regression")
    theta, v = rows(objective, 1), rows(objective, 1, seed=3)
    weight, bias = objective.layout.split(theta)
    x = torch.cat([objective.inputs, torch.ones(len(objective.inputs), 1, dtype=torch.float64)], 1)
    p = torch.softmax(objective.inputs @ weight[0].T + bias[0], -1)
    v_weight, v_bias = objective.layout.split(v)
    direction = torch.cat([v_weight[0], v_bias[0][:, None]], 1)  # (C, D + 1)
    tangent = x @ direction.T
    curved = p * tangent - p * (p * tangent).sum(1, keepdim=True)
    expected = curved.T @ x / len(x)
    expected_row = objective.layout.join([expected[:, :-1], expected[:, -1]])
    here = objective.evaluate(theta)
    for curvature in (hessian, gauss_newton):
        assert_equal(here.operator(curvature)(v), expected_row)


def test_output_hessian_by_autograd_equals_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, 6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 3, (6,), generator=generator)
    w = torch.randn(1, 6, 3, generator=generator, dtype=torch.float64)
    loss = SoftmaxCrossEntropy()
    by_graph = autograd_hessian(loss.value(z, y).sum(), z)(w)
    assert_equal(by_graph, loss.hessian(z, y)(w))
    assert_equal(by_graph.flatten(), output_hessian(z[0].detach()) @ w.flatten())


def test_a_mean_loss_of_a_users_function_has_pytorchs_derivatives() -> None:
    own, known = MeanLoss(F.cross_entropy), SoftmaxCrossEntropy()
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(2, 5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.tensor([0, 1, 2, 1, 0])
    torch.testing.assert_close(own.value(outputs, targets), known.value(outputs, targets))
    w = torch.randn(outputs.shape, dtype=torch.float64, generator=generator)
    expected = known.hessian(outputs, targets)(w)
    torch.testing.assert_close(own.hessian(outputs, targets)(w), expected)


def test_squared_error_has_its_hessian() -> None:
    z = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    y, w = torch.randn(5, 3, dtype=torch.float64), torch.randn(2, 5, 3, dtype=torch.float64)
    own = SquaredError()
    torch.testing.assert_close(own.value(z, y)[1], ((z[1] - y) ** 2).sum() / 5)
    by_graph = autograd_hessian(own.value(z, y).sum(), z)(w)
    torch.testing.assert_close(own.hessian(z, y)(w), by_graph)

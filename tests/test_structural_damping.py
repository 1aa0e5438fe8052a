"""Structural damping against dense matrices, difference quotients and dense solves; its refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ahf_cli.config.load import load as configuration
from ahf_cli.errors import InputError
from ahf_cli.optim import HessianFree, ModelObjective, Optimizer, compose
from ahf_cli.optim.cg import RelativeMartensRules
from ahf_cli.optim.losses import SquaredError
from ahf_cli.optim.newton import TruncatedNewton
from ahf_cli.optim.objective import l2_regularized
from ahf_cli.optim.operators import gauss_newton, structural
from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.recipes.recipe import Recipe
from ahf_cli.tasks.recurrent import TanhRNN
from tests.problems import dense_outputs, mlp, rows

LAMBDA = torch.tensor([0.3, 2.0], dtype=torch.float64)
MU = torch.tensor([0.5, 0.04], dtype=torch.float64)
EXAMPLES, STEPS, UNITS = 5, 6, 4


def objective(own_batches: bool = False, seed: int = 0, vectorized: bool = False) -> ModelObjective:
    """Two outputs of a recurrent network after six steps."""
    torch.manual_seed(seed)
    count = (2, EXAMPLES) if own_batches else (EXAMPLES,)
    x, y = torch.randn(*count, STEPS, 3).double(), torch.rand(*count, 2).double()
    model = TanhRNN(3, UNITS, 2).double()
    return ModelObjective(model, x, y, SquaredError(), vectorized, own_batches)


def row(h: ModelObjective, k: int) -> ModelObjective:
    """The objective of one row."""
    if not h.own_batches:
        return h
    return ModelObjective(h.model, h.inputs[k], h.targets[k], h.loss, False)


def states(h: ModelObjective, theta: Tensor) -> Tensor:
    """All hidden states (N, T, units), by PyTorch's own recurrent layer."""
    pieces = dict(zip(h.layout.names, (p[0] for p in h.layout.split(theta[None])), strict=True))
    named = {
        "weight_ih_l0": pieces["input.weight"], "bias_ih_l0": pieces["input.bias"],
        "weight_hh_l0": pieces["hidden.weight"], "bias_hh_l0": torch.zeros(UNITS).double(),
    }  # fmt: skip
    found: Tensor = functional_call(nn.RNN(3, UNITS, batch_first=True), named, (h.inputs,))[0]
    return found


def dense(h: ModelObjective, theta: Tensor) -> tuple[Tensor, Tensor]:
    """B and S of one row, by Jacobians; (P,) → (P, P), (P, P)."""
    outputs = torch.func.jacrev(dense_outputs(h))(theta).flatten(0, 1)
    hidden = torch.func.jacrev(lambda t: states(h, t))(theta).flatten(0, 2)
    return 2 * outputs.T @ outputs / EXAMPLES, hidden.T @ hidden / EXAMPLES


class ToRounding(RelativeMartensRules):
    """CG goes on until its residual is rounding."""

    def progress_stop(self, phi: list[Tensor]) -> None:
        """Return None."""


def optimizer(recipe: Recipe, **changes: Any) -> Optimizer:
    made = compose(recipe.structure)
    assert isinstance(made, Optimizer)
    return replace(made, **changes)


def recipe(**choices: Any) -> Recipe:
    """hf_martens with structural damping."""
    return RECIPES["hf_martens"].derive("x", {"damping_matrix": "structural", **choices})


@pytest.mark.parametrize("own_batches", [False, True])
@pytest.mark.parametrize("vectorized", [False, True])
def test_products_are_those_of_dense_matrices(own_batches: bool, vectorized: bool) -> None:
    h = objective(own_batches, vectorized=vectorized)
    theta, v = rows(h, 2), rows(h, 2, seed=2)
    product = h.evaluate(theta).operator(structural(LAMBDA, {"structural_weight": MU}))(v)
    for k in range(2):
        b, s = dense(row(h, k), theta[k])
        torch.testing.assert_close(product[k], (b + LAMBDA[k] * MU[k] * s) @ v[k])


def test_the_matrix_is_the_change_of_the_distances_gradient() -> None:
    """∇ of ½ mean ‖h(θ + s) − h(θ)‖² in s, at ± ε v: its central difference is S v + O(ε²)."""
    h, eps = objective(), 1e-5
    theta, v = rows(h, 1), rows(h, 1, seed=2)[0]
    here = states(h, theta[0])

    def slope(t: Tensor) -> Tensor:
        moved = t.clone().requires_grad_()
        distance = 0.5 * (states(h, moved) - here).square().sum() / EXAMPLES
        return torch.autograd.grad(distance, moved)[0]

    difference = (slope(theta[0] + eps * v) - slope(theta[0] - eps * v)) / (2 * eps)
    at = h.evaluate(theta)
    one = torch.ones(1).double()
    both = at.operator(structural(one, {"structural_weight": one}))(v[None])
    own = both - at.operator(gauss_newton)(v[None])
    torch.testing.assert_close(own[0], difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("preconditioner", ["none", "martens", "gradient", "hutchinson", "nystrom"])
@pytest.mark.parametrize("batch", ["same", "independent"])
def test_a_step_solves_the_damped_system_in_every_row(preconditioner: str, batch: str) -> None:
    h, other = objective(own_batches=True), objective(own_batches=True, seed=1)
    other.model = h.model
    theta = rows(h, 2)
    found = recipe(preconditioner=preconditioner, curvature_batch=batch, backtracking="none")
    core = optimizer(found, solver=TruncatedNewton(ToRounding(), 300))
    values: dict[str, Any] = found.complete({"damping": 1.0, "weight_decay": 0.01})
    state = core.init(theta, {**values, "damping": LAMBDA, "structural_weight": MU})
    there = other if batch == "independent" else h
    _, info = core.step(state, h, there if batch == "independent" else None)
    slope = l2_regularized(h, state.hyperparameters).evaluate(theta).gradient
    for k in range(2):
        b, s = dense(row(there, k), theta[k])
        b = b + 0.01 * torch.eye(len(b))
        system = b + LAMBDA[k] * (torch.eye(len(b)) + MU[k] * s)
        direction = torch.linalg.solve(system, -slope[k])
        torch.testing.assert_close(info.direction[k], direction, rtol=1e-6, atol=1e-9)
        # The model of h has no damping.
        model = slope[k] @ direction + 0.5 * direction @ b @ direction
        torch.testing.assert_close(info.model_value[k], model, rtol=1e-6, atol=1e-12)


def test_rows_are_independent_and_a_weight_of_zero_changes_nothing() -> None:
    h = objective()
    theta = rows(h, 3)
    weights = torch.tensor([0.0, 0.3, 1.0]).double()

    def after(rows: slice, found: Recipe, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        core = optimizer(found)
        values: dict[str, Any] = found.complete({"damping": 0.5})
        if "structural_weight" in values:
            values["structural_weight"] = weights[rows]
        state = core.init(theta[rows], values)
        for _ in range(3):
            state, info = core.step(state, h)
        return state.parameters, state.damping, info.products

    together = after(slice(0, 3), recipe(max_iterations=8), weights)
    for k in range(3):
        alone = after(slice(k, k + 1), recipe(max_iterations=8), weights)
        torch.testing.assert_close(together[0][k], alone[0][0], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(together[1][k], alone[1][0])
        assert together[2][k] == alone[2][0]
    plain = after(slice(0, 1), recipe(max_iterations=8, damping_matrix="identity"), weights)
    torch.testing.assert_close(together[0][:1], plain[0], rtol=1e-9, atol=1e-11)
    assert together[2][0] == plain[2][0] + 1  # δᵀBδ takes one product more
    undamped = after(slice(1, 2), recipe(max_iterations=8, damping_matrix="identity"), weights)
    assert (together[0][1] - undamped[0][0]).abs().max() > 1e-3


def test_models_without_states_and_wrong_choices_are_one_line() -> None:
    h = ModelObjective(mlp().double(), torch.randn(5, 4).double(), torch.zeros(5).long())
    found = recipe()
    core = optimizer(found)
    for chain in (h, ModelObjective(h.model, h.inputs, h.targets, chain=None)):
        with pytest.raises(ValueError, match=r"needs a model with hidden states .*, got Sequential"):
            core.step(core.init(rows(h, 1), found.complete({})), chain)
    for changes, line in (
        ({"structural_weight": -0.1}, r"structural_weight must be in \[0, inf\), got -0.1"),
        ({"damping_matrix": "identity", "structural_weight": 0.1}, "structural_weight has no effect in 'x'"),
        ({"damping_matrix": "states"}, "damping_matrix must be one of identity, structural, got 'states'"),
        ({"curvature": "hessian"}, "damping_matrix: structural needs curvature ggn or fisher or automatic"),
        ({"solver": "spring"}, "damping_matrix: structural needs solver cg, got 'spring'"),
    ):
        with pytest.raises(ValueError, match=line):
            recipe(**changes)
    with pytest.raises(ValueError, match="unknown choice 'damping_matrix'"):
        RECIPES["adam"].derive("x", {"damping_matrix": "structural"})
    with pytest.raises(ValueError, match="needs a model's hidden states; a closure gives none"):
        HessianFree(h.model.parameters(), curvature="ggn", damping_matrix="structural")


def test_a_study_refuses_a_model_without_states() -> None:
    own = [
        "search.recipes=[hf_states]",
        "recipes={hf_states: {base: hf_martens, damping_matrix: structural}}",
    ]
    with pytest.raises(InputError) as caught:
        configuration("smoke", overrides=own)
    line = "task.model: must give its hidden states, as rnn_100 does, for recipe hf_states, got 'lenet'"
    assert line in str(caught.value)
    task = ["task.data=addition_50", "task.model=rnn_100", "task.loss=squared_error"]
    assert configuration("smoke", overrides=[*own, *task]).search.recipes == ("hf_states",)

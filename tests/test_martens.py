"""The parts of Martens' Hessian-free optimizer, against dense algebra and plain Python."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian
from torch.nn import functional as F

import ahf_cli.optim.preconditioners as preconditioners
from ahf_cli.optim import CGResult, State, StepInfo, Stop, compose, conjugate_gradient, gauss_newton
from ahf_cli.optim import hessian as exact_hessian
from ahf_cli.optim.newton import Backtracking
from ahf_cli.optim.objective import l2_regularized
from ahf_cli.optim.step_size import Ray, armijo
from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.recipes.structure import Structure
from tests.problems import (
    QuadraticLoss,
    ResidualRules,
    dense_loss,
    dense_outputs,
    diagonal_of,
    problem,
    quadratic,
    right_hand_sides,
    rows,
    spd,
)

MARTENS = RECIPES["hf_martens"].choices


def test_the_recipe_has_the_constants_of_its_papers() -> None:
    assert (MARTENS.curvature, MARTENS.reduction_ratio, MARTENS.max_iterations) == ("ggn", "update", 250)
    assert sorted(Backtracking().kept(30)) == [5, 7, 9, 11, 15, 19, 25]
    assert max(Backtracking().kept(250)) == 197 == math.ceil(5 * 1.3**14)


@pytest.mark.parametrize("warm", [False, True])
def test_preconditioned_cg_solves_the_system_and_is_cg_in_scaled_variables(warm: bool) -> None:
    """With S = M^½, CG on S⁻¹AS⁻¹ y = S⁻¹b from y₀ = S x₀ has the iterates S x_n of preconditioned CG."""
    size, lam = 20, 0.5
    matrix, b = spd(size), right_hand_sides(2, size)
    diagonal = torch.linspace(0.1, 30, size, dtype=torch.float64).expand(2, -1).clone()
    diagonal[1] = diagonal[1].flip(0)
    start = right_hand_sides(2, size) * 0.1 if warm else torch.zeros_like(b)
    damping = torch.full((2,), lam, dtype=torch.float64)

    def solve(limit: int) -> CGResult:
        return conjugate_gradient(
            lambda v: v @ matrix,
            damping,
            -b,
            start,
            ResidualRules(),
            limit,
            preconditioner=diagonal,
            keep={3},
        )

    system = matrix + lam * torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(solve(400).solution, torch.linalg.solve(system, b.T).T, rtol=1e-9, atol=1e-11)
    for k in range(2):
        root = diagonal[k].sqrt()
        scaled = system / root[:, None] / root[None]
        plain = conjugate_gradient(
            lambda v, scaled=scaled: v @ scaled - 1e-3 * v,  # type: ignore[misc]
            torch.full((1,), 1e-3, dtype=torch.float64), -b[k : k + 1] / root, start[k : k + 1] * root,
            ResidualRules(), 3,
        )  # fmt: skip
        found = solve(3)
        torch.testing.assert_close(found.solution[k], plain.solution[0] / root, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(
            found.residual[k], b[k] - system @ found.solution[k], rtol=1e-9, atol=1e-11
        )
        (kept,) = solve(9).kept
        assert torch.equal(kept[0][k], found.solution[k]) and kept[1][k] == found.residual_along[k]
        torch.testing.assert_close(kept[1][k], found.residual[k] @ found.solution[k])


def test_a_good_preconditioner_saves_iterations() -> None:
    matrix = torch.diag(torch.logspace(0, 4, 40, dtype=torch.float64))
    b, damping = right_hand_sides(1, 40), torch.full((1,), 1e-6, dtype=torch.float64)
    zero = torch.zeros_like(b)
    plain = conjugate_gradient(lambda v: v @ matrix, damping, -b, zero, ResidualRules(), 30)
    diagonal = matrix.diagonal()[None] + 1e-6
    better = conjugate_gradient(
        lambda v: v @ matrix, damping, -b, zero, ResidualRules(), 30, preconditioner=diagonal
    )
    assert plain.iterations.item() == 30 and better.iterations.item() <= 2
    assert better.stop.item() == Stop.RESIDUAL


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_the_preconditioner_is_made_of_the_gradients_of_single_examples(name: str) -> None:
    objective = problem(name, examples=6)
    theta = rows(objective, 2)
    damping = torch.tensor([0.5, 20.0], dtype=torch.float64)
    here, steps = objective.evaluate(theta), torch.ones(2).long()
    at = preconditioners.Surroundings(here, lambda v: v, damping, steps)
    found = diagonal_of(preconditioners.martens(at))
    for k in range(2):
        squares = torch.zeros_like(theta[k])
        for n in range(6):

            def loss(t: Tensor, n: int = n) -> Tensor:
                return F.cross_entropy(dense_outputs(objective)(t)[n : n + 1], objective.targets[n : n + 1])

            squares += grad(loss)(theta[k]).square() / 6
        torch.testing.assert_close(found[k], (squares + damping[k]) ** 0.75, rtol=1e-10, atol=1e-12)


def test_weight_decay_is_in_the_loss_its_gradient_its_curvature_and_the_preconditioner() -> None:
    inner = problem("mlp")
    theta, v = rows(inner, 2), rows(inner, 2, seed=5)
    decay = torch.tensor([0.3, 0.01], dtype=torch.float64)
    regularized = l2_regularized(inner, {"weight_decay": decay})
    evaluation = regularized.evaluate(theta)
    bare = inner.evaluate(theta)
    for k in range(2):

        def h(t: Tensor, k: int = k) -> Tensor:
            return dense_loss(inner)(t) + 0.5 * decay[k] * (t @ t)

        torch.testing.assert_close(evaluation.loss[k], h(theta[k]))
        torch.testing.assert_close(regularized.value(theta)[k], h(theta[k]))
        torch.testing.assert_close(evaluation.gradient[k], grad(h)(theta[k]))
        torch.testing.assert_close(evaluation.operator(exact_hessian)(v)[k], hessian(h)(theta[k]) @ v[k])
    shift = decay[:, None] * v
    ggn = evaluation.operator(gauss_newton)(v)
    torch.testing.assert_close(ggn, bare.operator(gauss_newton)(v) + shift)
    torch.testing.assert_close(evaluation.squared_gradients(), bare.squared_gradients() + decay[:, None])


def result_of(kept: list[list[float]], last: list[float]) -> CGResult:
    """Return a result of CG with two rows, whose iterates are numbers x with rᵀx = x."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)[:, None]

    count = torch.zeros(2, dtype=torch.int64)
    iterates = tuple((column(k), column(k)[:, 0]) for k in kept)
    return CGResult(column(last), column(last), count, count, count, column(last)[:, 0], iterates)


@pytest.mark.parametrize(
    ("losses", "chosen"),
    [
        ({1: 5.0, 2: 3.0, 3: 4.0}, 2),  # back once
        ({1: 1.0, 2: 3.0, 3: 2.0}, 3),  # the better one behind a worse one is not looked for
        ({1: 1.0, 2: 2.0, 3: 3.0}, 1),  # all the way
        ({1: 5.0, 2: 4.0, 3: math.nan}, 2),  # from one that is not finite
        ({1: 2.0, 2: 2.0, 3: 2.0}, 1),  # equals are the shorter steps
    ],
)
def test_backtracking_goes_back_while_the_loss_falls(losses: dict[int, float], chosen: int) -> None:
    def loss_at(s: Tensor) -> Tensor:
        return torch.tensor([losses[int(s[0, 0])], -float(s[1, 0])], dtype=torch.float64)

    found = Backtracking()(result_of([[1.0, 1.0], [2.0, 2.0]], [3.0, 3.0]), loss_at)
    assert found.solution.tolist() == [[chosen], [3.0]]
    assert found.residual_along.tolist() == [chosen, 3.0]


def test_the_line_search_takes_the_longest_of_its_steps_that_falls_enough() -> None:
    """h(α) along each row; row 2 never falls, row 3 takes no part, row 4 is not finite until it is short."""

    def loss_at(s: Tensor) -> Tensor:
        a = s[:, 0]
        last = torch.where(a[4] > 0.3, torch.nan, 1 - 0.1 * a[4])
        return torch.stack([1 - a[0], (a[1] - 0.5) ** 2 + 0.75, 1 + a[2], 9 * a[3], last])

    one = torch.ones(5, dtype=torch.float64)
    gradient = torch.tensor([[-1.0], [-1.0], [-1.0], [-1.0], [-0.1]], dtype=torch.float64)
    active = torch.tensor([True, True, True, False, True])
    scale, update, after = armijo(one, one[:, None], Ray(loss_at, one, gradient, active))
    assert torch.equal(update[:, 0], scale)
    first = next(0.8**i for i in range(60) if (0.8**i - 0.5) ** 2 + 0.75 <= 1 - 1e-2 * 0.8**i)
    finite = next(0.8**i for i in range(60) if 0.8**i <= 0.3)
    assert scale.tolist() == pytest.approx([1.0, first, 0.0, 1.0, finite], rel=1e-12)
    assert after.tolist()[:3] == pytest.approx([0.0, (first - 0.5) ** 2 + 0.75, 1.0], rel=1e-12)


def take(structure: Structure, steps: int, **values: float) -> list[tuple[State, StepInfo]]:
    core, objective = compose(structure), problem("mlp", examples=40)
    state = core.init(rows(objective, 2), {"lr": 1.0, "damping": 1.0, "weight_decay": 1e-3, **values})
    taken = []
    for _ in range(steps):
        state, info = core.step(state, objective)
        taken.append((state, info))
    return taken


def test_it_is_never_worse_than_its_start_on_the_batch_and_descends() -> None:
    taken = take(MARTENS, 15)
    for _, info in taken:
        assert (info.loss_after <= info.loss).all()
    assert (taken[-1][1].loss_after < 0.8 * taken[0][1].loss).all()  # of labels drawn at random
    for (state, _), (_, info) in zip(taken, taken[1:], strict=False):
        torch.testing.assert_close(info.damping, state.damping)


class Raised(QuadraticLoss):
    """A quadratic loss that is 100 higher at all outputs but z = (1, …, 1)."""

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().value(outputs, targets) + 100 * ((outputs - 1).abs() > 1e-9).any(dim=-1)


def test_a_rejected_step_leaves_the_weights_and_raises_the_damping() -> None:
    structure = replace(MARTENS, preconditioner="none", regularization="none")
    core, theta = compose(structure), torch.ones(1, 6, dtype=torch.float64)
    start = core.init(theta, {"lr": 1.0, "damping": 2.0})
    objective = quadratic(spd(6), torch.ones(6, dtype=torch.float64))
    objective.loss = Raised(spd(6), torch.ones(6, dtype=torch.float64))
    state, info = core.step(start, objective)
    assert torch.equal(state.parameters, theta) and info.step_size.item() == 0
    assert info.loss_after.item() == info.loss.item() and state.damping.item() == 3.0
    assert state.diverged_at.item() == 0 and state.direction.abs().sum() > 0


def test_the_warm_start_is_the_last_iterate_and_the_step_may_be_an_earlier_one() -> None:
    core, objective = compose(MARTENS), problem("mlp", examples=40)
    differs = False
    state = core.init(3 * rows(objective, 2), {"lr": 1.0, "damping": 1e-3, "weight_decay": 0.0})
    for _ in range(8):
        state, info = core.step(state, objective)
        differs = differs or not torch.equal(state.direction, info.direction)
    assert differs

"""The Gauss-Newton system in the space of the outputs against a dense solve and against CG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ahf_cli.optim import GaussNewtonOperator, MartensRules, ModelObjective, Optimizer, Stop, compose
from ahf_cli.optim.descent import LinearSystem, TruncatedNewton
from ahf_cli.optim.dual import DualNewton, OutputSpace
from ahf_cli.optim.layers import LayerCall
from ahf_cli.optim.losses import SoftmaxCrossEntropy
from ahf_cli.recipes.recipe import RECIPES
from ahf_cli.report.trace_file import read_trace
from ahf_cli.training.trace import deviations, recipe_of, run
from tests.problems import MODELS, Quadratic, problem, rows, spd

GOLDEN = Path(__file__).parent / "golden"


class Patient(MartensRules):
    """CG that stops at the residual only."""

    def progress_stop(self, phi: list[Tensor]) -> Tensor | None:
        return None


def test_the_factor_squares_to_the_output_hessian() -> None:
    generator = torch.Generator().manual_seed(0)
    z = 5 * torch.randn(2, 7, 4, generator=generator, dtype=torch.float64)
    z[0, 0] = torch.tensor([0.0, 0.0, 0.0, 800.0])  # certain: H_L = 0
    z[0, 1] = torch.tensor([800.0, 0.0, 0.0, 0.0])
    y, loss = torch.zeros(7, dtype=torch.int64), SoftmaxCrossEntropy()
    factor = loss.factor(z, y)
    assert factor.shape == (2, 3, 7, 4) and torch.isfinite(factor).all()
    w = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64)
    squared = torch.einsum("krnc,krn->knc", factor, torch.einsum("krnc,knc->krn", factor, w))
    torch.testing.assert_close(squared, loss.hessian(z, y)(w), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_a_transposed_times_a_is_the_gauss_newton_matrix(name: str) -> None:
    objective = problem(name)
    operator, v = GaussNewtonOperator(objective.evaluate(rows(objective, 2))), rows(objective, 2, seed=3)
    for k in range(2):
        space = OutputSpace.of(operator, k)
        torch.testing.assert_close(
            space.transpose(space.forward(v[k])), operator(v)[k], rtol=1e-9, atol=1e-12
        )
        gram = space.gram()
        dense = torch.stack(
            [space.forward(space.transpose(e)) for e in torch.eye(len(gram), dtype=gram.dtype)]
        )
        torch.testing.assert_close(gram, dense, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_iterates_are_those_of_cg(name: str, warm: bool) -> None:
    objective = problem(name)
    operator = GaussNewtonOperator(objective.evaluate(rows(objective, 3)))
    # Neither the gradient, from another batch, nor the start lies in the range of Jᵀ.
    gradient = problem(name, seed=9).evaluate(rows(objective, 3)).gradient
    previous = rows(objective, 3, seed=7) * (0.1 if warm else 0.0)
    damping = torch.tensor([0.5, 2.0, 20.0], dtype=torch.float64)
    active = torch.tensor([True, True, False])
    cg = TruncatedNewton(MartensRules())(LinearSystem(operator, gradient, damping, previous, active))
    dual = DualNewton(MartensRules())(LinearSystem(operator, gradient, damping, previous, active))
    assert torch.equal(dual.stop, cg.stop)
    # Where CG ends at a residual of rounding size, one iteration more or less is rounding too.
    exhausted = cg.stop == int(Stop.RESIDUAL)
    assert ((dual.iterations - cg.iterations).abs() <= exhausted.long()).all()
    # CG amplifies roundings from iteration to iteration, and the Gram matrix squares the condition.
    distance = (dual.solution - cg.solution)[:2].norm(dim=1) / cg.solution[:2].norm(dim=1)
    assert (distance < 1e-7).all()
    torch.testing.assert_close(dual.residual[:2], cg.residual[:2], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_solution_equals_a_dense_solve(name: str) -> None:
    objective = problem(name)
    operator = GaussNewtonOperator(objective.evaluate(rows(objective, 1)))
    size = objective.layout.size
    eye = torch.eye(size, dtype=torch.float64)
    matrix = torch.cat([operator(e[None]) for e in eye])
    gradient, previous = rows(objective, 1, seed=4), rows(objective, 1, seed=5)
    damping = torch.tensor([0.3], dtype=torch.float64)
    system = LinearSystem(operator, gradient, damping, previous, torch.tensor([True]))
    found = DualNewton(Patient(), 300)(system)
    dense = torch.linalg.solve(matrix + 0.3 * eye, -gradient[0])
    torch.testing.assert_close(found.solution[0], dense, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*ggn*.npz")), ids=lambda file: file.stem)
def test_recorded_traces_are_reproduced(file: Path) -> None:
    recorded = read_trace(file)
    recipe = recipe_of(recorded.setup).derive("dual", {"solver": "dual"})
    ours = run(recorded.setup, recipe, recorded.x, recorded.y, recorded.init)
    assert [d for d in deviations(recorded, ours) if d.first_step is not None] == []


def test_float32_steps_stay_close_to_those_of_cg() -> None:
    objective = problem("conv", examples=40)
    objective.model.float()
    objective.inputs = objective.inputs.float()
    theta = rows(objective, 2).float()

    def run_with(solver: str) -> Tensor:
        changes = {"curvature": "ggn", "curvature_batch": "same", "solver": solver}
        optimizer: Optimizer = compose(RECIPES["hf"].derive(solver, changes).choices)
        state = optimizer.init(theta, {"lr": 0.5, "damping": 1.0})
        for _ in range(5):
            state, _ = optimizer.step(state, objective)
        return state.parameters

    torch.testing.assert_close(run_with("dual"), run_with("cg"), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_trials_of_one_batched_computation(name: str) -> None:
    steps = {}
    for vectorized in (False, True):
        objective = problem(name, vectorized=vectorized)
        changes = {"curvature": "ggn", "curvature_batch": "same", "solver": "dual"}
        optimizer = compose(RECIPES["hf"].derive("x", changes).choices)
        state = optimizer.init(rows(objective, 3), {"lr": torch.tensor([1.0, 0.5, 0.1]), "damping": 1.0})
        for _ in range(4):
            state, _ = optimizer.step(state, objective)
        steps[vectorized] = state.parameters
    torch.testing.assert_close(steps[True], steps[False], rtol=1e-7, atol=1e-9)


def test_a_row_that_is_not_active_costs_no_forward_pass() -> None:
    objective = problem("mlp")
    theta = rows(objective, 3)
    evaluation, run = objective.evaluate(theta), []
    inner = evaluation.layer_calls
    assert inner is not None

    def noted(row: int) -> tuple[Tensor, Sequence[LayerCall]]:
        run.append(row)
        return inner(row)

    evaluation.layer_calls = noted
    active = torch.tensor([True, False, True])
    gradient, damping = evaluation.gradient, torch.ones(3, dtype=torch.float64)
    system = LinearSystem(GaussNewtonOperator(evaluation), gradient, damping, theta, active)
    found = DualNewton(MartensRules())(system)
    assert run == [0, 2]
    assert found.stop[1] == int(Stop.INACTIVE) and found.iterations[1] == 0 and found.products[1] == 0
    assert torch.equal(found.solution[1], torch.zeros_like(theta[1]))


def in_both_precisions(objective: ModelObjective, damping: float, rules: MartensRules) -> tuple[float, float]:
    """How far CG and the dual in float32 are from CG in float64, relative to its solution."""
    theta, active = rows(objective, 1), torch.tensor([True])

    def solve(solver: TruncatedNewton | DualNewton, dtype: torch.dtype) -> Tensor:
        objective.model.to(dtype)
        objective.inputs = objective.inputs.to(dtype)
        evaluation = objective.evaluate(theta.to(dtype))
        zero, number = torch.zeros_like(theta, dtype=dtype), torch.tensor([damping], dtype=dtype)
        operator = GaussNewtonOperator(evaluation)
        return solver(LinearSystem(operator, evaluation.gradient, number, zero, active)).solution.double()

    exact = solve(TruncatedNewton(rules), torch.float64)
    return tuple(  # type: ignore[return-value]
        float((solve(solver, torch.float32) - exact).norm() / exact.norm())
        for solver in (TruncatedNewton(rules), DualNewton(rules))
    )


@pytest.mark.parametrize("damping", [1e-2, 1e-3, 1e-4])
def test_float32_at_small_damping(damping: float) -> None:
    cg, dual = in_both_precisions(problem("conv", examples=100), damping, MartensRules())
    assert dual < cg and dual < 0.05


def test_float32_where_the_gram_matrix_is_indefinite_by_rounding() -> None:
    objective = problem("mlp", examples=60)
    objective.inputs = 1 + 1e-3 * objective.inputs  # all examples nearly the same
    _, dual = in_both_precisions(objective, 1e-6, MartensRules())
    assert dual < 1e-3  # 0.03 if the matrix is left as it is


class Scaled(nn.Module):
    """A parameter outside linear and convolution layers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.scale  # type: ignore[no-any-return]


def test_what_it_cannot_do_is_named() -> None:
    solver, active = DualNewton(MartensRules()), torch.tensor([True])
    own = ModelObjective(Scaled().double(), *[getattr(problem("mlp"), key) for key in ("inputs", "targets")])
    theta = rows(own, 1)
    with pytest.raises(ValueError, match=r"exactly one linear or ungrouped conv2d layer, and scale is in 0"):
        operator = GaussNewtonOperator(own.evaluate(theta))
        solver(LinearSystem(operator, theta, torch.ones(1).double(), theta, active))
    other = Quadratic(spd(3), torch.ones(3, dtype=torch.float64))
    theta = torch.zeros(1, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="needs the layers of a ModelObjective"):
        operator = GaussNewtonOperator(other.evaluate(theta))
        solver(LinearSystem(operator, theta, torch.ones(1).double(), theta, active))
    with pytest.raises(ValueError, match="dual needs curvature ggn"):
        RECIPES["hf"].derive("x", {"solver": "dual"})

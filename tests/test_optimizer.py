"""A step of the optimizer against known methods, and the contract of each recipe."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ahf_cli.optim import AnyOptimizer, ModelObjective, Objective, State, StepInfo, compose
from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.recipes.recipe import Recipe
from ahf_cli.recipes.structure import Structure
from tests.problems import problem, quadratic, rows, spd

EVERY = {
    # `lbfgs` is an object a row: tests/test_foreign.py
    **{k: r for k, r in RECIPES.items() if not r.structure.squares and "optimizer" not in r.structure.chosen},
    "hf_ggn": RECIPES["hf"].derive("hf_ggn", {"curvature": "ggn"}),
    "hf_update": RECIPES["hf"].derive("hf_update", {"reduction_ratio": "update"}),
    "adaptive_hf_ggn": RECIPES["adaptive_hf"].derive("a", {"curvature": "ggn", "norm": "l1", "mu": 60.0}),
    "adaptive_hf_update": RECIPES["adaptive_hf"].derive(
        "b", {"reduction_ratio": "update", "norm": "sum_l2", "step_size": "eq3_repaired"}
    ),
    "adaptive_hf_constant": RECIPES["adaptive_hf"].derive("c", {"step_size": "constant", "lr": 1e-3}),
    "hf_hyperbolic": RECIPES["hf"].derive("e", {"step_size": "hyperbolic", "clipping": "radius"}),
    "adaptive_hf_clipped": RECIPES["adaptive_hf"].derive(
        "f", {"clipping": "direction", "step_size": "constant", "reduction_ratio": "update"}
    ),
    "hf_gradient": RECIPES["hf"].derive("g", {"solver": "gradient"}),
    "hf_eq3": RECIPES["hf"].derive("d", {"step_size": "eq3", "damping_rule": "constant"}),
}
SPREAD = {
    "lr": [0.3, 1.0, 0.05], "damping": [3.0, 1.0, 20.0], "beta2": [1e-5, 0.1, 1e-9],
    "epsilon": [0.01, 0.05, 1e-3], "sigma": [30.0, 60.0, 90.0], "smoothness": [50.0, 200.0, 300.0],
    "momentum": [0.5, 0.9, 0.99], "halving": [3.0, 50.0, 1e3], "radius": [0.02, 0.5, 10.0],
}  # fmt: skip


def trials(recipe: Recipe, which: list[int]) -> dict[str, Tensor]:
    values = recipe.complete({})
    spread = {name: SPREAD[name] for name in recipe.free}
    return {
        name: torch.tensor([spread[name][k] if name in spread else value for k in which], dtype=torch.float64)
        for name, value in values.items()
    }


def batches(optimizer: AnyOptimizer, step: int, vectorized: bool | None = None) -> list[ModelObjective]:
    seeds = [step, 100 + step] if optimizer.independent_batch else [step]
    return [problem("mlp", seed=seed, vectorized=vectorized) for seed in seeds]


def run(
    recipe: Recipe, which: list[int], steps: int = 5, start: State | None = None, first: int = 0,
    vectorized: bool | None = None,
) -> tuple[State, list[StepInfo]]:  # fmt: skip
    optimizer = compose(recipe.structure)
    theta = rows(problem("mlp"), 1).expand(len(which), -1).clone()
    state = start or optimizer.init(theta, trials(recipe, which))
    infos = []
    for step in range(first, first + steps):
        state, info = optimizer.step(state, *batches(optimizer, step, vectorized))
        infos.append(info)
    return state, infos


def step_on(
    structure: Structure, objective: Objective, theta: Tensor, **values: float
) -> tuple[State, StepInfo]:
    optimizer = compose(structure)
    return optimizer.step(optimizer.init(theta, values), objective)


ALONE = Structure(curvature_batch="same")


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_hf_on_a_quadratic_is_newton(curvature: str) -> None:
    matrix, b = spd(8), torch.arange(8, dtype=torch.float64)
    structure = replace(ALONE, curvature=curvature, max_iterations=200)
    theta = torch.ones(2, 8, dtype=torch.float64)
    state, info = step_on(structure, quadratic(matrix, b), theta, lr=1.0, damping=1e-10)
    solution = torch.linalg.solve(matrix, b)
    torch.testing.assert_close(state.parameters, solution.expand(2, -1), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(info.reduction_ratio, torch.ones(2, dtype=torch.float64))  # the model is exact
    torch.testing.assert_close(info.model_value, info.loss_after - info.loss)


def test_steps_of_length_zero_lower_the_damping_until_there_is_a_step() -> None:
    """A ratio 0/0 would raise λ, and a shorter δ keeps Eq. 3 negative."""
    structure = replace(ALONE, step_size="eq3_repaired", moments="adam", reduction_ratio="update")
    matrix, b = spd(8), torch.full((8,), 0.1, dtype=torch.float64)
    core, objective = compose(structure), quadratic(matrix, b)
    values = {"damping": 9.0, "beta2": 0.0, "epsilon": 0.2, "sigma": 0.35, "smoothness": 10.0, "mu": 1.0}
    state, still = core.init(torch.zeros(1, 8, dtype=torch.float64), values), 0
    for _ in range(60):
        state, info = core.step(state, objective)
        if info.step_size.item() == 0 and still < 3:
            still += 1
            assert info.reduction_ratio.item() == 1
            torch.testing.assert_close(info.damping_next, 2 / 3 * info.damping)
    assert still == 3
    least = objective.value(torch.linalg.solve(matrix, b)[None]).item()
    assert info.loss_after.item() < 0.7 * least < 0


def test_published_ratio_lies_between_alpha_and_alpha_times_two_minus_alpha() -> None:
    matrix, b = spd(8), torch.arange(8, dtype=torch.float64)
    for lr in (0.05, 0.134, 0.5, 1.0):
        for damping in (1e-6, 1.0, 100.0):
            structure = replace(ALONE, reduction_ratio="published", max_iterations=300)
            _, info = step_on(
                structure, quadratic(matrix, b), torch.ones(1, 8).double(), lr=lr, damping=damping
            )
            assert lr - 1e-3 <= info.reduction_ratio.item() <= lr * (2 - lr) + 1e-3


def test_adaptive_hf_with_small_decay_is_a_sign_step() -> None:
    # β₁ = ε/(ε+2σ) → 0 and β₂ = 0: u = α_t δ/(|δ| + μ), α_t → 4‖δ‖²/(3Lσ).
    objective = quadratic(spd(8), torch.arange(8, dtype=torch.float64))
    structure = replace(ALONE, step_size="eq3", moments="adam")
    values = {"damping": 1.0, "beta2": 0.0, "epsilon": 1e-14, "sigma": 50.0, "smoothness": 100.0, "mu": 1e-3}
    _, info = step_on(structure, objective, torch.ones(1, 8, dtype=torch.float64), **values)
    alpha = 4 * info.direction_l2**2 / (3 * 100 * 50)
    torch.testing.assert_close(info.step_size, alpha)
    torch.testing.assert_close(info.update, alpha * info.direction / (info.direction.abs() + 1e-3))


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_trials_side_by_side_equal_trials_alone(name: str, vectorized: bool) -> None:
    together, infos = run(EVERY[name], [0, 1, 2], vectorized=vectorized)
    for k in range(3):
        alone, single = run(EVERY[name], [k])
        torch.testing.assert_close(together.parameters[k], alone.parameters[0], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(together.damping[k], alone.damping[0], rtol=1e-9, atol=0)
        assert [i.stop[k].item() for i in infos] == [i.stop[0].item() for i in single]
        assert [i.products[k].item() for i in infos] == [i.products[0].item() for i in single]
    assert together.step.tolist() == [5, 5, 5]


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_a_poisoned_trial_moves_no_other(name: str, vectorized: bool) -> None:
    healthy, _ = run(EVERY[name], [0, 1, 2], steps=2, vectorized=vectorized)
    optimizer = compose(EVERY[name].structure)
    theta = healthy.parameters.clone()
    theta[1, 3] = torch.nan
    poisoned = replace(healthy, parameters=theta)
    after, _ = run(EVERY[name], [0, 1, 2], 3, poisoned, first=2, vectorized=vectorized)
    clean, _ = run(EVERY[name], [0, 1, 2], 3, healthy, first=2, vectorized=vectorized)
    for k in (0, 2):
        torch.testing.assert_close(after.parameters[k], clean.parameters[k], rtol=1e-12, atol=1e-14)
    assert after.diverged_at.tolist() == [0, 3, 0] and after.step.tolist() == [5, 2, 5]
    recipe = EVERY[name]
    independent = recipe.hessian_free and recipe.choices.curvature_batch == "independent"
    assert optimizer.independent_batch == independent


@pytest.mark.parametrize("name", EVERY)
def test_a_saved_state_continues_bitwise(name: str) -> None:
    straight, _ = run(EVERY[name], [0, 1], steps=6)
    half, _ = run(EVERY[name], [0, 1], steps=3)
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    restored = State(**torch.load(file, weights_only=True))
    resumed, _ = run(EVERY[name], [0, 1], 3, restored, first=3)
    for key, value in straight.state_dict().items():
        pairs = value.items() if isinstance(value, dict) else [(None, value)]
        for inner, tensor in pairs:
            other = resumed.state_dict()[key]
            assert torch.equal(tensor, other if inner is None else other[inner]), (key, inner)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", EVERY)
def test_a_step_keeps_the_dtype_and_gives_one_number_a_row(name: str, dtype: torch.dtype) -> None:
    optimizer = compose(EVERY[name].structure)
    objectives = batches(optimizer, 0)
    for objective in objectives:
        objective.model.to(dtype)
        objective.inputs = objective.inputs.to(dtype)
    theta = rows(objectives[0], 2).to(dtype)
    state, info = optimizer.step(optimizer.init(theta, EVERY[name].complete({})), *objectives)
    assert state.parameters.dtype == dtype and state.parameters.shape == theta.shape
    assert state.damping.dtype == dtype and state.damping.shape == (2,)
    assert all(
        value.shape == (2,)
        for key, value in vars(info).items()
        if isinstance(value, Tensor) and key not in ("direction", "update", "gradient")
    )
    assert info.finite.all() and not torch.equal(state.parameters, theta)


def test_divergence_is_a_result_with_its_step() -> None:
    # The loss overflows where the step is too long: the row stays at its last finite parameters.
    objective = quadratic(spd(4), torch.ones(4, dtype=torch.float64))
    optimizer = compose(ALONE)
    theta = torch.ones(2, 4, dtype=torch.float64)
    state = optimizer.init(theta, {"lr": torch.tensor([0.5, 1e300], dtype=torch.float64), "damping": 1.0})
    state, info = optimizer.step(state, objective)
    assert info.finite.tolist() == [True, False] and state.diverged_at.tolist() == [0, 1]
    assert torch.equal(state.parameters[1], theta[1]) and state.damping[1] == 1.0
    later, _ = optimizer.step(state, objective)
    assert torch.equal(later.parameters[1], theta[1]) and later.step.tolist() == [2, 0]


def test_runaway_damping_overflows_in_float32_and_is_called_divergence() -> None:
    # α < 0.134: the published ratio is below ¼ at every step, so λ ← 3/2 λ until it overflows.
    # (With large gradients λ‖r‖² overflows first; ρ is then not finite, and λ stays where it is.)
    matrix, b = 0.01 * spd(4).float(), torch.full((4,), 0.01)
    optimizer = compose(RECIPES["hf_published"].choices)
    state = optimizer.init(torch.zeros(1, 4), {"lr": 0.05, "damping": 10.0})
    dampings = []
    for _ in range(230):
        state, info = optimizer.step(state, quadratic(matrix, b))
        dampings.append(info.damping.item())
    assert dampings[:30] == pytest.approx([10 * 1.5**t for t in range(30)], rel=1e-5)
    assert 200 < state.diverged_at.item() < 230
    assert torch.isfinite(state.parameters).all()


def test_products_and_gradients_are_counted() -> None:
    for name, per_step in (("hf", 2), ("hf_ggn", 1), ("hf_published", 1)):
        _, infos = run(EVERY[name], [0], steps=2)
        assert [i.gradients for i in infos] == [per_step] * 2
        assert infos[0].products >= infos[0].cg_iterations
        assert infos[1].products >= infos[1].cg_iterations + 1  # the warm start
    _, infos = run(EVERY["adaptive_hf_update"], [0], steps=1)
    assert infos[0].products >= infos[0].cg_iterations + 1  # q(u)


def test_a_missing_or_needless_curvature_batch_is_named() -> None:
    objective = problem("mlp")
    for name, extra, word in (
        ("hf", [], "needs a curvature objective"),
        ("hf_published", [objective], "takes no curvature objective"),
    ):
        optimizer = compose(RECIPES[name].choices)
        state = optimizer.init(rows(objective, 1), RECIPES[name].complete({}))
        with pytest.raises(ValueError, match=f"^curvature_batch: this recipe {word}"):
            optimizer.step(state, objective, *extra)


@pytest.mark.parametrize(("clipping", "limit"), [("radius", 0.3), ("direction", None)])
def test_an_update_is_shortened_to_its_limit_and_keeps_its_way(clipping: str, limit: float | None) -> None:
    objective = quadratic(spd(8), torch.arange(8, dtype=torch.float64))
    theta = torch.ones(1, 8, dtype=torch.float64)
    structure = replace(ALONE, clipping=clipping)
    values = {"lr": 2.0, "damping": 1.0, **({"radius": limit} if limit else {})}
    state, info = step_on(structure, objective, theta, **values)
    _, free = step_on(ALONE, objective, theta, lr=2.0, damping=1.0)
    length = limit or info.direction_l2.item()
    assert info.update_l2.item() == pytest.approx(length) and free.update_l2.item() > length
    torch.testing.assert_close(info.update, free.update * length / free.update_l2)
    torch.testing.assert_close(state.parameters, theta + info.update)
    assert info.step_size.item() == pytest.approx(2 * length / free.update_l2.item())
    _, short = step_on(structure, objective, theta, **{**values, "lr": 1e-3})
    assert short.step_size.item() == 1e-3


def test_without_curvature_the_direction_is_the_damped_gradient_and_the_model_is_kept() -> None:
    """One product a step gives q(δ) = gᵀδ + ½ δᵀBδ."""
    recipe = RECIPES["hf"].derive("own", {"solver": "gradient", "curvature_batch": "same"})
    objective, optimizer = problem("mlp"), compose(recipe.structure)
    assert isinstance(recipe.structure, Structure)
    with_cg = compose(replace(recipe.structure, solver="cg"))
    state = optimizer.init(rows(objective, 3), trials(recipe, [0, 1, 2]))
    _, info = optimizer.step(state, objective)
    torch.testing.assert_close(info.direction, -info.gradient / info.damping[:, None])
    B = with_cg.solve(state, objective).model.operator
    torch.testing.assert_close(
        info.model_value,
        (info.gradient * info.direction).sum(1) + 0.5 * (info.direction * B(info.direction)).sum(1),
    )
    assert info.products.tolist() == [1, 1, 1] and info.cg_iterations.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="solver: gradient needs preconditioner none, got 'martens'"):
        RECIPES["hf_martens"].derive("own", {"solver": "gradient"})

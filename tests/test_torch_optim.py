"""`HessianFree` and `AdaptiveHessianFree` in a user's own loop."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ahf_cli.optim import AdaptiveHessianFree, GaussNewton, HessianFree, ModelObjective, Stop, compose
from ahf_cli.optim.torch_optim import ROBUST
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
    values = {"lr": 0.8, "damping": 3.0} if needs_outputs(name) else {"lr": 1.0, "damping": 1.0}
    curvature = "ggn" if needs_outputs(name) else "hessian"
    core = compose(RECIPES["hf"].derive("x", {**ROBUST, "curvature": curvature}).structure)
    objective = ModelObjective(copy.deepcopy(model), x, y)
    state = core.init(objective.layout.join([p.detach() for p in model.parameters()]), values)
    for _ in range(6):
        optimizer.step(cross_entropy(model, x, y, needs_outputs(name)))
        state, _ = core.step(state, objective)
    found = torch.cat([p.detach().ravel() for p in model.parameters()])
    torch.testing.assert_close(found, state.parameters[0], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("hf", HessianFree.paper),
        ("adaptive_hf", AdaptiveHessianFree.paper),
        ("hf_stable", HessianFree.stable),
        ("hf_stable", lambda p: HessianFree.stable(p, 0.5, damping=3.0, halving=2.0, radius=0.02)),
    ],
)
@pytest.mark.parametrize("second", [False, True])
def test_named_choices_are_those_of_recipes(name: str, make: Callable[[Any], Any], second: bool) -> None:
    model, x, y = conv_problem()
    optimizer, outputs = make(model.parameters()), name == "hf_stable"
    recipe = RECIPES[name]
    core = compose((recipe if second else recipe.derive("x", {"curvature_batch": "same"})).structure)
    parts = (slice(0, 10), slice(10, None)) if second else (slice(None),)
    objectives = [ModelObjective(copy.deepcopy(model), x[part], y[part]) for part in parts]
    values = {k: v for k, v in optimizer.param_groups[0].items() if k in recipe.hyperparameters}
    assert set(values) == set(recipe.hyperparameters)
    theta = objectives[0].layout.join([p.detach() for p in model.parameters()])
    state = core.init(theta, values)
    for _ in range(4):
        optimizer.step(*(cross_entropy(model, x[part], y[part], outputs) for part in parts))
        state, _ = core.step(state, *objectives)
    found = torch.cat([p.detach().ravel() for p in model.parameters()])
    torch.testing.assert_close(found, state.parameters[0], rtol=1e-8, atol=1e-10)


def test_the_stable_choices_train_on_new_batches() -> None:
    model, x, y = conv_problem()
    optimizer = HessianFree.stable(model.parameters(), halving=20)
    before = cross_entropy(model, x, y, outputs=True)()[0].item()
    for step in range(60):
        part = slice(10 * (step % 4), 10 * (step % 4) + 10)
        optimizer.step(cross_entropy(model, x[part], y[part], outputs=True))
        assert optimizer.last_step is not None and float(optimizer.last_step.update.norm()) <= 0.1 + 1e-9
    assert cross_entropy(model, x, y, outputs=True)()[0].item() < 0.5 * before


def test_a_second_batch_carries_the_curvature() -> None:
    model, x, y = conv_problem()
    optimizer = HessianFree(model.parameters())
    first, second = cross_entropy(model, x[:10], y[:10], False), cross_entropy(model, x[10:], y[10:], False)
    start = copy.deepcopy(model)
    optimizer.step(first, second)
    choices = {**ROBUST, "curvature": "hessian", "curvature_batch": "independent"}
    core = compose(RECIPES["hf"].derive("x", choices).structure)
    objectives = [ModelObjective(start, x[:10], y[:10]), ModelObjective(start, x[10:], y[10:])]
    theta = objectives[0].layout.join([p.detach() for p in start.parameters()])
    state, _ = core.step(core.init(theta, {"lr": 1.0, "damping": 1.0}), *objectives)
    found = torch.cat([p.detach().ravel() for p in model.parameters()])
    torch.testing.assert_close(found, state.parameters[0])


def test_direction_leaves_everything_but_the_warm_start() -> None:
    model, x, y = conv_problem()
    optimizer, twin = HessianFree.paper(model.parameters()), copy.deepcopy(model)
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
    fresh = HessianFree.paper(model.parameters())
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


@pytest.mark.parametrize("make", [HessianFree, HessianFree.paper, AdaptiveHessianFree])
def test_a_step_that_is_not_finite_is_skipped_and_training_goes_on(make: Any) -> None:
    p, factor = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64)), 1.0
    optimizer = make([p], damping=8.0)

    def closure() -> Tensor:
        return factor * (p**2).sum()

    before = float(optimizer.step(closure))
    kept, damping, factor = p.tolist(), optimizer.damping, float("nan")
    with pytest.warns(RuntimeWarning, match="a step was not finite and is skipped"):
        optimizer.step(closure)
    optimizer.step(closure)  # without a second warning, which the tests would not forgive
    assert optimizer.diverged and p.tolist() == kept
    assert optimizer.damping == pytest.approx(damping * 1.5**2)
    factor = 1.0
    losses = [float(optimizer.step(closure)) for _ in range(20)]
    assert not optimizer.diverged and losses[-1] < before
    optimizer.reset()
    assert optimizer.damping == 8.0 and not optimizer.state


def test_damping_may_be_set_between_steps() -> None:
    p = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = HessianFree([p], damping=1e-8)
    used = []
    for value in (None, 5.0, None, 0.25, None):
        if value is not None and value > 1:
            optimizer.damping = value
        elif value is not None:
            optimizer.param_groups[0]["damping"] = value
        optimizer.step(lambda: (p**4).sum())
        assert optimizer.last_step is not None
        used.append(float(optimizer.last_step.damping))
    assert used[0] == pytest.approx(1e-8) and used[1] == 5.0 and used[3] == 0.25
    assert used[2] != 5.0 and used[4] != 0.25


def test_the_gradient_before_the_step_is_there_after_it() -> None:
    model, x, y = conv_problem()
    optimizer, closure = HessianFree(model.parameters()), cross_entropy(model, x, y, True)
    expected = torch.autograd.grad(closure()[0], list(model.parameters()))
    optimizer.step(closure)
    for p, g in zip(model.parameters(), expected, strict=True):
        assert p.grad is not None and p.grad is not g
        torch.testing.assert_close(p.grad, g)


def test_weight_decay_belongs_to_each_group() -> None:
    model, x, y = conv_problem()
    twin = copy.deepcopy(model)
    first, rest = list(model.parameters())[:2], list(model.parameters())[2:]
    optimizer = HessianFree([{"params": first, "weight_decay": 0.3}, {"params": rest}], weight_decay=0.1)
    other = HessianFree(twin.parameters(), curvature="hessian")

    def penalized() -> Tensor:
        loss: Tensor = cross_entropy(twin, x, y)()
        own = [0.3, 0.3, *[0.1] * len(rest)]
        return loss + sum(0.5 * w * p.square().sum() for w, p in zip(own, twin.parameters(), strict=True))

    for _ in range(4):
        optimizer.step(cross_entropy(model, x, y))
        other.step(penalized)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def conv_shapes() -> list[torch.Size]:
    return [p.shape for p in conv_problem()[0].parameters()]


def test_damping_has_the_factors_and_bounds_of_the_caller() -> None:
    p = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = HessianFree([p], damping=2.0, damping_factors=(10.0, 0.5), damping_bounds=(0.3, 5.0))
    found = []
    for _ in range(4):
        optimizer.step(lambda: (p**2).sum())
        found.append(optimizer.damping)
    assert found[:3] == [1.0, 0.6, 0.6]  # ρ = 1 on a quadratic, but for the damping
    assert pickle.loads(pickle.dumps(optimizer))._parts == optimizer._parts


@pytest.mark.parametrize("outputs", [False, True])
def test_a_preconditioner_changes_the_path_and_not_the_solution(outputs: bool) -> None:
    model, x, y = conv_problem()
    closure = cross_entropy(model, x, y, outputs)
    options: dict[str, Any] = {"damping": 10.0, "max_iterations": 400, "backtracking": "none"}
    plain = HessianFree(model.parameters(), **options).direction(closure)
    for preconditioner in (
        "gradient",
        "hutchinson",
        lambda: [1 + p.detach().abs() for p in model.parameters()],
    ):
        found = HessianFree(model.parameters(), preconditioner=preconditioner, **options).direction(closure)
        for a, b in zip(found, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e6])
def test_the_step_at_negative_curvature_does_not_depend_on_the_unit_of_a_preconditioner(unit: float) -> None:
    p = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = HessianFree([p], damping=0.5, preconditioner=lambda: [torch.full((2,), unit)])
    (found,) = optimizer.direction(lambda: -0.5 * (p @ p))
    torch.testing.assert_close(found, torch.full((2,), 2.0, dtype=torch.float64))


def test_a_forcing_sequence_stops_cg_by_its_residual() -> None:
    model, x, y = conv_problem()
    optimizer = HessianFree(model.parameters(), cg_rules="forcing", backtracking="none", curvature="ggn")
    closure, first = cross_entropy(model, x, y, True), None
    for step in range(8):
        if step == 4:  # the first gradient survives a copy
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        gradient = [g.flatten() for g in torch.autograd.grad(closure()[0], list(model.parameters()))]
        norm, damping = torch.cat(gradient).norm(), optimizer.damping
        first = norm if first is None else first
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step(closure)
        after = [p.detach().clone() for p in model.parameters()]
        nn.utils.vector_to_parameters(torch.cat([p.flatten() for p in before]), model.parameters())
        b = GaussNewton(closure, list(model.parameters()))
        info = optimizer.last_step
        assert info is not None and Stop(int(info.stop)) is Stop.RESIDUAL
        away = b @ info.direction[0] + damping * info.direction[0] + torch.cat(gradient)
        limit = min(0.5, float((norm / first).sqrt())) * norm
        assert away.norm() <= limit * (1 + 1e-9)
        nn.utils.vector_to_parameters(torch.cat([p.flatten() for p in after]), model.parameters())
    assert first is not None and float(norm) < 0.5 * float(first)


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
        (frozen, {}, r"conv1.weight: requires_grad is False"),
        (mixed, {}, r"one dtype and device"),
        (lambda m: m.parameters(), {"lr": 0}, r"lr must be in \(0, inf\), got 0"),
        (lambda m: m.parameters(), {"damping": -1.0}, r"damping must be in \(0, inf\), got -1.0"),
        (
            lambda m: m.parameters(),
            {"curvature": "gnn"},
            r"curvature must be one of hessian, ggn, automatic, fisher, got 'gnn'",
        ),
        (
            lambda m: m.parameters(),
            {"curvatur": "ggn"},
            r"unknown choice 'curvatur'; did you mean 'curvature'",
        ),
        (
            lambda m: m.parameters(),
            {"solver": "lu"},
            "solver must be one of cg, trust_region, gradient, spring, kfac, ekfac, nystrom, got 'lu'",
        ),
        (lambda m: m.parameters(), {"preconditioner": "martens"}, "a closure gives none"),
        (lambda m: m.parameters(), {"preconditioner": "kfac"}, "a closure gives none"),
        (lambda m: m.parameters(), {"preconditioner": "nystrom"}, "keeps matrices from step to step"),
        (lambda m: m.parameters(), {"schedule": "linear"}, "schedule is a choice of recipes"),
        (lambda m: m.parameters(), {"damping_factors": (0.9, 0.5)}, r"one above 1 and one in \(0, 1\)"),
        (lambda m: m.parameters(), {"damping_bounds": (2.0, 3.0)}, "low ≤ 1 ≤ high"),
        (
            lambda m: m.parameters(),
            {"damping_bounds": (0.1, 3.0), "damping_rule": "constant"},
            "no effect with damping_rule constant",
        ),
        (lambda m: m.parameters(), {"preconditioner": lambda: [torch.ones(3)]}, "in its shape, got shapes"),
        (
            lambda m: m.parameters(),
            {"preconditioner": lambda: [torch.zeros(s) for s in conv_shapes()]},
            "every entry of the diagonal must be positive",
        ),
        (lambda m: m.parameters(), {"history_size": 5}, "history_size is an option of torch.optim.LBFGS"),
        (lambda m: m.parameters(), {"norm": "l1"}, "norm has no effect with step_size constant"),
        (lambda m: m.parameters(), {"curvature_batches": 2}, "the closures are the batches"),
        (lambda m: m.parameters(), {"batch_growth": 2}, "the closures are the batches"),
        (lambda m: m.parameters(), {"regularization": "none"}, "must be l2, with weight_decay for each"),
        (lambda m: m.parameters(), {"weight_decay": -1.0}, r"weight_decay must be in \[0, inf\), got -1.0"),
        (lambda m: m.parameters(), {"sigma": 1.0}, "sigma has no effect in 'HessianFree'"),
    ],
)
def test_misuse_is_named(
    parameters: Callable[[nn.Module], Any], options: dict[str, Any], message: str
) -> None:
    model, x, y = conv_problem()
    with pytest.raises((ValueError, RuntimeError), match=message):
        HessianFree(parameters(model), **options).step(cross_entropy(model, x, y, False))


def test_a_value_that_the_choices_do_not_use_is_refused() -> None:
    model, *_ = conv_problem()
    with pytest.raises(ValueError, match="smoothness has no effect in AdaptiveHessianFree"):
        AdaptiveHessianFree(model.parameters(), smoothness=1.0, step_size="constant")


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


@pytest.mark.parametrize("outputs", [False, True])
def test_parameters_without_effect_on_a_batch_stay(outputs: bool) -> None:
    model, x, y = conv_problem()
    parameters = unused(model)
    optimizer = HessianFree(parameters)
    losses = [float(optimizer.step(cross_entropy(model, x, y, outputs))) for _ in range(5)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    assert torch.equal(parameters[-1][1], torch.zeros(2, dtype=torch.float64))


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

"""Schedules, warm-up and averages, against `torch.optim.lr_scheduler` and `torch.optim.swa_utils`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler, swa_utils

from ahf_cli.config.load import parse
from ahf_cli.errors import InputError
from ahf_cli.optim import compose_trial
from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.recipes.structure import choices_of, structure_of
from tests.problems import dense_outputs, problem, rows

STEPS, WARM = 12, 3
Scheduler = Callable[[torch.optim.Optimizer, int], lr_scheduler.LRScheduler]
SHAPES: dict[str, Scheduler] = {
    "constant": lambda optimizer, n: lr_scheduler.ConstantLR(optimizer, 1.0),
    "linear": lambda optimizer, n: lr_scheduler.LinearLR(optimizer, 1.0, 0.0, n),
    "cosine": lambda optimizer, n: lr_scheduler.CosineAnnealingLR(optimizer, n),
    "hyperbolic": lambda optimizer, n: lr_scheduler.LambdaLR(optimizer, lambda k: 1 / (1 + k / 5.0)),
}


def scheduler(optimizer: torch.optim.Optimizer, shape: str, warm: bool) -> lr_scheduler.LRScheduler:
    if not warm:
        return SHAPES[shape](optimizer, STEPS)
    rise = lr_scheduler.LinearLR(optimizer, 1 / WARM, 1.0, WARM - 1)
    return lr_scheduler.SequentialLR(optimizer, [rise, SHAPES[shape](optimizer, STEPS - WARM)], [WARM])


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_schedules_and_averages_are_those_of_torch_step_by_step(shape: str, warm: bool) -> None:
    recipe = RECIPES["adam"].derive(
        "scheduled", {"schedule": shape, "warmup": "linear" if warm else "none", "average": "ema"}
    )
    values = recipe.complete(
        {"lr": 0.05}
        | ({"halving": 5.0} if shape == "hyperbolic" else {})
        | ({"warmup_share": WARM / STEPS} if warm else {})
        | {"average_decay": 0.6}
    )
    theta = rows(problem("mlp"), 1)
    core = compose_trial(recipe.structure, STEPS)
    state = core.init(theta, values)
    leaf = nn.Parameter(theta[0].clone())
    theirs = torch.optim.Adam([leaf], lr=0.05)
    rates = scheduler(theirs, shape, warm)
    holder = nn.Module()
    holder.register_parameter("theta", leaf)
    averaged = swa_utils.AveragedModel(holder, avg_fn=moved)
    for step in range(STEPS):
        objective = problem("mlp", seed=step)
        before = theirs.param_groups[0]["lr"]
        state, info = core.step(state, objective)
        theirs.zero_grad()
        F.cross_entropy(dense_outputs(objective)(leaf), objective.targets).backward()  # type: ignore[no-untyped-call]
        theirs.step()
        rates.step()
        averaged.update_parameters(holder)
        assert info.step_size.item() == pytest.approx(before, rel=1e-12)
        torch.testing.assert_close(state.parameters[0], leaf.detach(), rtol=1e-9, atol=1e-12)
        mean = averaged.module.get_parameter("theta").detach()
        torch.testing.assert_close(state.evaluated[0], mean, rtol=1e-9, atol=1e-12)
    assert state.hyperparameters["lr"].item() == pytest.approx(0.05)
    assert not torch.equal(state.evaluated, state.parameters)


def moved(mean: torch.Tensor, new: torch.Tensor, n: int | torch.Tensor) -> torch.Tensor:
    """d θ̄ + (1−d) θ with d = min(0.6, (1+n)/(10+n)) at the update n = 1, 2, … after the first, a copy."""
    decay = min(0.6, (1 + int(n)) / (10 + int(n)))
    return decay * mean + (1 - decay) * new


@pytest.mark.parametrize("name", ["hf_stable", "adaptive_hf"])
def test_a_schedule_multiplies_the_step_size_of_every_rule(name: str) -> None:
    """Step 4 of 12 along a line has 1 − 3/12 of α; both begin from one state."""
    recipe = RECIPES[name]
    plain, linear = (
        compose_trial(recipe.derive("x", {"schedule": shape}).structure, STEPS)
        for shape in ("constant", "linear")
    )
    objective, other = problem("mlp", seed=0), problem("mlp", seed=1)
    state = plain.init(rows(objective, 2), recipe.complete({}))
    for _ in range(3):
        state, _ = plain.step(state, objective, other)
    _, without = plain.step(state, objective, other)
    _, scheduled = linear.step(state, objective, other)
    radius = state.hyperparameters.get("radius", torch.full((2,), torch.inf))
    alpha = without.step_size if name == "adaptive_hf" else state.hyperparameters["lr"] / (1 + 3 / 200)
    expected = torch.minimum(0.75 * alpha, radius / scheduled.direction_l2)
    torch.testing.assert_close(scheduled.step_size, expected if name == "hf_stable" else 0.75 * alpha)


def test_a_row_that_diverges_keeps_its_average_and_rows_are_independent() -> None:
    recipe = RECIPES["sgd_momentum"].derive("x", {"average": "ema", "schedule": "cosine"})
    core, objective = compose_trial(recipe.structure, 6), problem("mlp")
    theta = rows(objective, 2)
    values: dict[str, torch.Tensor | float] = {"momentum": 0.9, "average_decay": 0.9}
    both = core.init(theta, values | {"lr": torch.tensor([0.1, 1e200], dtype=torch.float64)})
    alone = core.init(theta[:1], values | {"lr": 0.1})
    for step in range(4):
        both, _ = core.step(both, problem("mlp", seed=step))
        alone, _ = core.step(alone, problem("mlp", seed=step))
    assert both.diverged_at.tolist() == [0, 1] and both.active.tolist() == [True, False]
    torch.testing.assert_close(both.evaluated[:1], alone.evaluated, rtol=1e-12, atol=1e-13)
    assert torch.equal(both.evaluated[1], theta[1])


def test_choices_of_every_recipe_are_written_only_where_they_are_made() -> None:
    assert choices_of(RECIPES["adam"].structure) == {"method": "adam"}
    assert "schedule" not in choices_of(RECIPES["hf"].structure)
    own = RECIPES["adam"].derive("x", {"schedule": "linear", "warmup": "linear"}).structure
    assert choices_of(own) == {"method": "adam", "schedule": "linear", "warmup": "linear"}
    assert structure_of(choices_of(own)) == own


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "step"}, "schedule must be one of constant, linear, cosine, hyperbolic, got 'step'"),
        ({"warmup_share": 0.1}, "warmup_share has no effect in 'x'"),
        ({"warmup": "linear", "warmup_share": 1.0}, "warmup_share must be in [0, 1), got 1.0"),
        ({"average_decay": 0.9}, "average_decay has no effect in 'x'"),
        ({"curvature": "ggn"}, "unknown choice 'curvature'"),
    ],
)
def test_wrong_choices_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse({"study": "s", "recipes": {"x": {"base": "adam", **changes}}}, "file")
    assert message in str(caught.value)

"""Training on a small task: records, resumption, batches and divergence."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
from torch import nn

from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.tasks.data import LabelledImages, Split
from ahf_cli.tasks.initial import glorot_uniform
from ahf_cli.tasks.models import LeNet
from ahf_cli.tasks.task import CURVATURE_STREAM, GRADIENT_STREAM, Task, batch_indices, mini_batches
from ahf_cli.training.evaluate import evaluate
from ahf_cli.training.records import Progress, Start
from ahf_cli.training.train import (
    Plan,
    StoppedError,
    begin,
    dump,
    initial,
    restore,
    side_by_side,
    train,
)

LN_10 = math.log(10)
PLAN = Plan(steps=6, eval_every=2, seed=3, cap=LN_10)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 9, stride=4)
        self.fc = nn.Linear(50, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.conv(x)).flatten(1))  # type: ignore[no-any-return]


def images(count: int, seed: int) -> LabelledImages:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    pixels = torch.randint(0, 120, (count, 1, 28, 28), generator=generator)
    for n, label in enumerate(labels):
        pixels[n, 0, 2 * int(label) : 2 * int(label) + 6] += 100
    return LabelledImages(pixels.to(torch.uint8), labels)


def task(validation: bool = True) -> Task:
    split = Split(images(80, 0), images(30, 1) if validation else None, images(40, 2))
    return Task(split, Small(), 16, torch.device("cpu"))


def comparable(rows: list) -> list[dict[str, object]]:  # type: ignore[type-arg]
    """Return rows as data without their seconds; NaN becomes a text, which equals itself."""
    return [
        {
            k: "nan" if isinstance(v, float) and math.isnan(v) else v
            for k, v in asdict(r).items()
            if k != "seconds"
        }
        for r in rows
    ]


@pytest.mark.parametrize("name", [name for name, r in RECIPES.items() if not r.structure.squares])
def test_a_run_records_steps_evaluations_and_its_end(name: str) -> None:
    recipe = RECIPES[name]
    damped = {"damping": 5.0} if recipe.hessian_free else {}
    two = recipe.hessian_free and recipe.choices.curvature_batch == "independent"
    batch = begin(task(), recipe, PLAN, {7: damped or {"lr": 0.01}})
    heard: list[Progress] = []
    (result,) = train(task(), batch, on_progress=heard.append)
    trial = batch.trials[0]
    assert [row.step for row in trial.steps] == [1, 2, 3, 4, 5, 6]
    assert [row.step for row in trial.curve] == [0, 2, 4, 6] and trial.curve[2].epoch == 4 / 5
    assert result.slot == 7 and result.status == "ok"
    assert result.params == recipe.complete(damped or {"lr": 0.01})
    assert result.value == min(trial.curve[-1].measured["train_loss"], LN_10) and result.steps == 6
    products = trial.curve[-1].products
    assert products == trial.products
    if recipe.hessian_free:
        assert products >= sum(r.cg_iterations for r in trial.steps) and trial.steps[0].damping == 5.0
        assert (products == 0) == (name in ("kfac", "ekfac"))
    else:
        assert products == (6 if name == "adahessian" else 0)
    renewals = {"kfac": 3, "ekfac": 3}  # in the first three steps
    second = 6 if recipe.hessian_free and recipe.choices.curvature == "hessian" and two else 0
    if name == "lbfgs":  # up to twenty iterations a step, with a line search each
        assert trial.curve[-1].gradients > 6 * 20
    else:
        assert trial.curve[-1].gradients == 6 + second + renewals.get(name, 0)
    assert [p.step for p in heard] == [0, 1, 2, 3, 4, 5, 6] and heard[2].row == trial.curve[1]
    assert trial.steps[1].loss != trial.steps[0].loss


def test_training_reduces_the_loss() -> None:
    good = {"lr": 0.3, "damping": 3.0}
    batch = begin(task(), RECIPES["hf"].derive("g", {"curvature": "ggn"}), replace(PLAN, steps=25), {0: good})
    (result,) = train(task(), batch)
    assert result.measured["test_accuracy"] > 0.9 and not result.stalled


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_a_stopped_run_continues_bitwise(stop_at: int) -> None:
    recipe, saved = RECIPES["adaptive_hf"], {}
    straight = begin(task(), recipe, PLAN, {0: {}})
    train(task(), straight)
    batch = begin(task(), recipe, PLAN, {0: {}})
    with pytest.raises(StoppedError):
        train(
            task(),
            batch,
            on_checkpoint=lambda slot, data, step: saved.update({step: data}),
            should_stop=lambda: batch.step == stop_at,
        )
    assert list(saved) == [stop_at]
    resumed = restore(task(), recipe, PLAN, saved[stop_at])
    train(task(), resumed)
    assert torch.equal(resumed.state.parameters, straight.state.parameters)
    assert comparable(resumed.trials[0].curve) == comparable(straight.trials[0].curve)
    assert comparable(resumed.trials[0].steps) == comparable(straight.trials[0].steps)


@pytest.mark.parametrize("name", ["hf", "adaptive_hf_stable", "adam"])
def test_trials_side_by_side_resume_side_by_side(name: str) -> None:
    recipe = RECIPES[name]
    own = "damping" if recipe.hessian_free else "lr"
    params = {slot: {own: 0.01 * (slot + 1)} for slot in range(3)}
    whole = begin(task(), recipe, PLAN, params)
    train(task(), whole)
    half, saved = begin(task(), recipe, PLAN, params), {}
    with pytest.raises(StoppedError):
        train(
            task(),
            half,
            on_checkpoint=lambda slot, data, step: saved.update({slot: data}),
            should_stop=lambda: half.step == 3,
        )
    (resumed,) = side_by_side(restore(task(), recipe, PLAN, data) for data in saved.values())
    assert [trial.slot for trial in resumed.trials] == [0, 1, 2]
    train(task(), resumed)
    for one, other in zip(resumed.trials, whole.trials, strict=True):
        assert comparable(one.curve) == comparable(other.curve)
        assert comparable(one.steps) == comparable(other.steps)


def test_trials_at_different_steps_resume_apart() -> None:
    batches = [begin(task(), RECIPES["adam"], PLAN, {slot: {}}) for slot in range(3)]
    batches[1].step = 2
    joined = side_by_side(batches)
    assert [(b.step, [t.slot for t in b.trials]) for b in joined] == [(0, [0, 2]), (2, [1])]


def test_a_checkpoint_holds_its_own_row_alone() -> None:
    one, many = (begin(task(), RECIPES["hf"], PLAN, dict.fromkeys(range(n), {})) for n in (1, 20))
    assert len(dump(many, 3)) < 1.01 * len(dump(one, 0))


def test_checkpoints_come_at_their_interval_and_not_at_the_end() -> None:
    steps: list[int] = []
    batch = begin(task(), RECIPES["hf"], replace(PLAN, checkpoint_every=2), {0: {}})
    train(task(), batch, on_checkpoint=lambda slot, data, step: steps.append(step))
    assert steps == [2, 4]


def test_checkpoints_of_a_long_trial_cost_a_multiple_of_its_length_and_lose_2_percent() -> None:
    plan, length = replace(PLAN, checkpoint_every=3), 30_000
    written = [step for step in range(1, length) if plan.writes_at(step)]
    assert written[:100] == list(range(3, 303, 3))
    gaps = [after - before for before, after in itertools.pairwise([*written, length])]
    assert all(gap <= max(3, 0.02 * step) for gap, step in zip(gaps, written, strict=True))
    assert sum(written) < 110 * length  # each holds as many rows as its step; at equal distances 5,000
    assert not any(replace(PLAN, checkpoint_every=None).writes_at(step) for step in range(1, 9))


def test_trials_in_a_batch_equal_trials_alone_and_one_that_diverges_stops_alone() -> None:
    recipe = RECIPES["hf"]
    params = {0: {"lr": 0.1, "damping": 3.0}, 4: {"lr": 1e30, "damping": 3.0}, 5: {"lr": 0.3, "damping": 9.0}}
    together = begin(task(), recipe, PLAN, params)
    results = train(task(), together)
    assert [r.status for r in results] == ["ok", "diverged", "ok"] and [r.slot for r in results] == [0, 4, 5]
    assert (
        results[1].steps == 1 and results[1].value == LN_10 and math.isnan(results[1].measured["train_loss"])
    )
    assert [row.step for row in together.trials[1].curve] == [0] and len(together.trials[1].steps) == 1
    for k, slot in ((0, 0), (2, 5)):
        alone = begin(task(), recipe, PLAN, {slot: params[slot]})
        (result,) = train(task(), alone)
        assert results[k].measured["train_loss"] == pytest.approx(result.measured["train_loss"], rel=1e-4)


@pytest.mark.parametrize("name", ["hf", "hf_martens", "adam"])
@pytest.mark.parametrize("model", ["small", "lenet"])
def test_rows_with_seeds_of_their_own_train_as_alone_and_resume(name: str, model: str) -> None:
    own = replace(task(), model=LeNet()) if model == "lenet" else task()
    recipe, plan = RECIPES[name], replace(PLAN, steps=3)
    starts = {0: Start(7), 1: Start(9), 2: Start(9, repeat=1), 3: Start(7, order=9)}
    together = begin(own, recipe, plan, dict.fromkeys(starts, {}), starts)
    results = train(own, together)
    assert [r.seed for r in results] == [7, 9, 9, 7]
    for k, slot in enumerate(starts):
        alone = begin(own, recipe, plan, {slot: {}}, starts)
        train(own, alone)
        for row, single in zip(together.trials[k].steps, alone.trials[0].steps, strict=True):
            assert row.loss == pytest.approx(single.loss, rel=1e-4)
    half = begin(own, recipe, plan, dict.fromkeys(starts, {}), starts)
    saved: dict[int, bytes] = {}
    with pytest.raises(StoppedError):
        train(
            own, half, on_checkpoint=lambda slot, data, step: saved.update({slot: data}),
            should_stop=lambda: half.step == 2,
        )  # fmt: skip
    restored = (restore(own, recipe, plan, data, starts[slot]) for slot, data in saved.items())
    (resumed,) = side_by_side(restored)
    for one, other in zip(train(own, resumed), results, strict=True):
        assert one.measured == other.measured


def test_a_seed_of_the_batch_order_changes_the_batches_alone() -> None:
    own = task()
    batch = begin(own, RECIPES["hf"], PLAN, {0: {}}, {0: Start(7, order=9)})
    train(own, batch)
    h = own.objective([9], GRADIENT_STREAM, 0).value(own.initial(7).unsqueeze(0))
    assert batch.trials[0].steps[0].loss == pytest.approx(float(h), rel=1e-6)


def test_a_repeat_changes_the_last_digits_of_the_initial_weights() -> None:
    own = task()
    theta = own.initial(4)
    assert torch.equal(initial(own, Start(4)), theta)
    repeats = [initial(own, Start(4, n)) for n in (1, 2)]
    for moved in repeats:
        # Two units of the last place at most: 1 + ε rounds to a neighbour or to the one after.
        assert bool(((moved - theta).abs() <= 2 * torch.finfo(theta.dtype).eps * theta.abs()).all())
        assert float((moved != theta)[theta != 0].double().mean()) > 0.3
    assert not torch.equal(*repeats)


def test_all_diverged_ends_the_run() -> None:
    heard: list[Progress] = []
    train(task(), begin(task(), RECIPES["hf"], PLAN, {0: {"lr": 1e30}}), on_progress=heard.append)
    assert [p.step for p in heard] == [0, 1]


@pytest.mark.parametrize("cap", [LN_10, math.log(3), math.log(100)])
def test_a_finite_disaster_and_a_divergence_count_as_chance(cap: float) -> None:
    worse = replace(PLAN, steps=1, cap=cap)
    params = {0: {"lr": 3000.0, "damping": 1.0}, 1: {"lr": 1e30, "damping": 1.0}}
    disaster, diverged = train(task(), begin(task(), RECIPES["hf"], worse, params))
    assert disaster.status == "ok" and disaster.measured["train_loss"] > cap == disaster.value
    assert disaster.stalled and (diverged.status, diverged.value) == ("diverged", cap)


def test_a_stall_is_flagged() -> None:
    (still,) = train(task(), begin(task(), RECIPES["hf"], PLAN, {0: {"lr": 1e-9}}))
    assert still.stalled and still.status == "ok"


def test_no_validation_set_gives_nan() -> None:
    batch = begin(task(validation=False), RECIPES["hf"], PLAN, {0: {}})
    (result,) = train(task(validation=False), batch)
    assert math.isnan(result.measured["validation_loss"]) and result.status == "ok"


def test_evaluation_equals_one_pass_over_the_set() -> None:
    own = replace(task(), split=Split(images(600, 5), None, images(40, 2)))  # more than two chunks
    theta = torch.stack([own.initial(0), own.initial(1)])
    found = evaluate(own, theta, own.split.train, limit=555)
    whole = own.examples(own.split.train, 0, 555)
    torch.testing.assert_close(found["loss"].float(), whole.value(theta), rtol=1e-5, atol=1e-6)
    right = (whole.outputs(theta).argmax(-1) == whole.targets).float().mean(-1)
    torch.testing.assert_close(found["accuracy"].float(), right)


def test_batches_are_a_pure_function_of_seed_stream_and_step() -> None:
    count, size = 80, 16
    epoch = [batch_indices(3, GRADIENT_STREAM, step, count, size) for step in range(5)]
    assert sorted(np.concatenate(epoch).tolist()) == list(range(80))
    assert not np.array_equal(batch_indices(3, GRADIENT_STREAM, 5, count, size), epoch[0])
    assert not np.array_equal(batch_indices(3, CURVATURE_STREAM, 0, count, size), epoch[0])
    assert not np.array_equal(batch_indices(4, GRADIENT_STREAM, 0, count, size), epoch[0])
    np.testing.assert_array_equal(batch_indices(3, GRADIENT_STREAM, 2, count, size), epoch[2])
    # the last partial batch is dropped: 83 examples give 5 batches of 16 as well
    assert len(set(np.concatenate([batch_indices(3, 1, s, 83, size) for s in range(5)]).tolist())) == 80


def test_lenet_begins_with_glorot_uniform_weights() -> None:
    own = Task(task().split, LeNet(), 16, torch.device("cpu"))
    assert own.layout.size == 44_426
    theta = glorot_uniform(own.layout, 0)
    pieces = dict(zip(own.layout.names, own.layout.split(theta[None]), strict=True))
    for name, fans in {"conv1.weight": 25 + 150, "conv2.weight": 150 + 400, "fc1.weight": 256 + 120}.items():
        bound = math.sqrt(6 / fans)
        values = pieces[name]
        assert values.abs().max() <= bound and values.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert all((piece == 0).all() for name, piece in pieces.items() if name.endswith("bias"))
    assert torch.equal(theta, glorot_uniform(own.layout, 0)) and not torch.equal(
        theta, glorot_uniform(own.layout, 1)
    )


def test_more_batches_of_curvature_are_consecutive_ones() -> None:
    own = task()
    two = own.batch([3], CURVATURE_STREAM, 2, 2)
    parts = [own.batch([3], CURVATURE_STREAM, n) for n in (2, 3)]
    assert torch.equal(two.inputs, torch.cat([part.inputs for part in parts]))
    assert torch.equal(two.targets, torch.cat([part.targets for part in parts]))


@pytest.mark.parametrize("growth", [1, 2, 3, 7])
@pytest.mark.parametrize("steps", [1, 2, 5, 40])
def test_batches_grow_along_a_line_without_a_gap(steps: int, growth: int) -> None:
    found = [mini_batches(t, steps, growth) for t in range(steps)]
    assert [count for _, count in found] == [1 + (growth - 1) * t // max(1, steps - 1) for t in range(steps)]
    assert [before for before, _ in found] == [sum(c for _, c in found[:t]) for t in range(steps)]
    assert found[0] == (0, 1) and (steps == 1 or found[-1][1] == growth)


@pytest.mark.parametrize("name", ["hf_stable", "adam"])
def test_a_trial_with_growing_batches_sees_and_counts_their_mini_batches(name: str) -> None:
    own = task()
    recipe = RECIPES[name].derive("growing", {"batch_growth": 3})
    seen: list[torch.Tensor] = []

    class Watched(Task):
        def batch(self, seeds, stream, first, batches=1):  # type: ignore[no-untyped-def]
            found = super().batch(seeds, stream, first, batches)
            seen.extend(found.inputs.unbind() if stream == GRADIENT_STREAM else [])
            return found

    watched = Watched(**{f.name: getattr(own, f.name) for f in fields(own)})
    batch = begin(watched, recipe, replace(PLAN, steps=5), {0: {}})
    train(watched, batch)
    each = [own.batch([PLAN.seed], GRADIENT_STREAM, n).inputs for n in range(1 + 1 + 2 + 2 + 3)]
    assert torch.equal(torch.stack(seen), torch.cat(each))
    trial, plain = batch.trials[0], begin(own, RECIPES[name], replace(PLAN, steps=9), {0: {}})
    train(own, plain)
    assert trial.gradients == plain.trials[0].gradients == 9
    per_epoch = len(own.split.train) // own.batch_size
    assert trial.curve[-1].epoch == 9 / per_epoch


def test_growing_batches_resume_bitwise() -> None:
    own, recipe = task(), RECIPES["hf_stable"].derive("growing", {"batch_growth": 3})
    whole, parts = (begin(own, recipe, PLAN, {0: {}}) for _ in range(2))
    train(own, whole)
    kept: list[bytes] = []
    with pytest.raises(StoppedError):
        train(
            own, parts,
            on_checkpoint=lambda slot, data, step: kept.append(data), should_stop=lambda: parts.step == 3,
        )  # fmt: skip
    resumed = restore(own, recipe, PLAN, kept[-1])
    train(own, resumed)
    assert torch.equal(resumed.state.parameters, whole.state.parameters)
    assert resumed.trials[0].products == whole.trials[0].products


def test_a_recipe_that_takes_more_steps_is_evaluated_as_often() -> None:
    small, plan = task(), replace(PLAN, steps=2, eval_every=1, longer={"sgd_momentum": 3})
    batch = begin(small, RECIPES["sgd_momentum"], plan.of("sgd_momentum"), {0: {"lr": 0.01, "momentum": 0.9}})
    (result,) = train(small, batch)
    assert [row.step for row in batch.trials[0].curve] == [0, 3, 6] and result.planned_steps == 6
    assert plan.of("hf") == replace(plan, longer={})

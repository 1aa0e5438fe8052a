"""Optimizer classes of installed packages as recipes, against plain loops with the same classes."""

from __future__ import annotations

import io
import json
import random
import re
import shlex
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ahf_cli.cli import main
from ahf_cli.config.load import Config, load, parse
from ahf_cli.errors import InputError
from ahf_cli.optim import ModelObjective, State, compose
from ahf_cli.recipes.builtin import find_recipe
from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS, declare, of_class
from ahf_cli.recipes.parts import SLOTS
from ahf_cli.recipes.recipe import Recipe
from ahf_cli.recipes.structure import choices_of, structure_of
from ahf_cli.report.exhibits.sensitivity import on_log_axis, sensitivity_points
from ahf_cli.report.study_data import load_study
from ahf_cli.search.machine import refuse_classes
from ahf_cli.study.store import Study
from tests.fashion_mnist import write
from tests.odd_classes import PACKAGE
from tests.problems import problem, rows
from tests.processes import ROOT

pytestmark = pytest.mark.usefixtures("registries")
STEPS = 20


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of an installed package of classes."""
    folder = tmp_path / "lib" / "site-packages"
    folder.mkdir(parents=True)
    (folder / "odd_classes.py").write_text(PACKAGE)
    (folder / "odd_broken.py").write_text("raise RuntimeError('no GPU here\\nand more')")
    monkeypatch.syspath_prepend(str(folder))
    for name in ("odd_classes", "odd_broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "odd_classes"


def config_of(recipe: Mapping[str, Any], space: Mapping[str, Any] | None = None) -> Config:
    return parse({"recipes": {"x": recipe}, "spaces": {"x": space or {}}, "search": {"recipes": ["x"]}}, "F")


def recipe(path: str, **fixed: Any) -> Recipe:
    return config_of({"optimizer": path, "fixed": fixed}).recipe("x")


def batch(step: int, dtype: torch.dtype) -> ModelObjective:
    """Return the objective of a step; automatic differentiation rounds as the plain loop does."""
    own = problem("conv", seed=step, explicit=False)
    return ModelObjective(own.model.to(dtype), own.inputs.to(dtype), own.targets, chain=None)


def loop(
    made: Any, arguments: Mapping[str, Any], theta: Tensor, closed: bool, steps: int = STEPS
) -> tuple[Tensor, int]:
    """Return θ after a plain loop with an object of the class, and the number of its gradients.

    A closure takes loss and gradient from the objective: a line search multiplies their roundings.
    """
    layout, count = batch(0, theta.dtype).layout, 0
    tensors = [nn.Parameter(piece[0].clone()) for piece in layout.split(theta[None])]
    optimizer = made(tensors, **arguments)
    for step in range(steps):
        h = batch(step, theta.dtype)

        def closure(h: ModelObjective = h) -> Tensor:
            nonlocal count
            count += 1
            here = h.evaluate(layout.join([t.detach() for t in tensors]))
            for tensor, gradient in zip(tensors, layout.split(here.gradient), strict=True):
                tensor.grad = gradient[0].clone()
            return here.loss[0]

        if closed:
            optimizer.step(closure)
            continue
        optimizer.zero_grad()
        named: dict[str, Tensor] = dict(zip(layout.names, tensors, strict=True))
        loss = nn.functional.cross_entropy(functional_call(h.model, named, (h.inputs,)), h.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        count += 1
        optimizer.step()
    return layout.join([t.detach() for t in tensors])[0], count


def walk(core: Any, state: State, first: int, last: int) -> tuple[State, Tensor]:
    """Return the state after some steps, and the number of gradients of each row."""
    counts = torch.zeros_like(state.step)
    for step in range(first, last):
        state, info = core.step(state, batch(step, state.parameters.dtype))
        counts += info.gradients
    return state, counts


CLASSES: dict[str, dict[str, Any]] = {
    "NAdam": {"lr": 0.02, "betas.0": 0.8, "weight_decay": 0.01},
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    "RAdam": {"lr": 0.03},
    "Adadelta": {"rho": 0.8, "lr": 1.0},
    "Rprop": {"lr": 0.01, "etas.0": 0.4},
    "Adafactor": {"lr": 0.01, "d": 1.5},
    "LBFGS": {"lr": 1.0, "max_iter": 3, "history_size": 3, "line_search_fn": "strong_wolfe"},
}


TUPLES: dict[str, dict[str, Any]] = {
    "NAdam": {"lr": 0.02, "betas": (0.8, 0.999), "weight_decay": 0.01},
    "Rprop": {"lr": 0.01, "etas": (0.4, 1.2)},
}
"""The same with tuples, as a constructor takes them."""


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CLASSES)
def test_steps_are_those_of_a_plain_loop(name: str, dtype: torch.dtype) -> None:
    own, made = recipe(f"torch.optim.{name}", **CLASSES[name]), getattr(torch.optim, name)
    core, arguments = compose(own.structure), TUPLES.get(name, CLASSES[name])
    theta = rows(batch(0, torch.float64), 2).to(dtype)
    state, counts = walk(core, core.init(theta, own.complete({})), 0, STEPS)
    for k in range(2):
        expected, gradients = loop(made, arguments, theta[k], name == "LBFGS")
        rtol, atol = (1e-12, 1e-13) if dtype == torch.float64 else (1e-4, 1e-5)
        torch.testing.assert_close(state.parameters[k], expected, rtol=rtol, atol=atol)
        assert int(counts[k]) == gradients
    assert not torch.equal(state.parameters[0], theta[0])


def test_the_recipe_lbfgs_is_the_class_without_tolerances() -> None:
    own, theta = find_recipe("lbfgs"), rows(batch(0, torch.float64), 1)
    core = compose(own.structure)
    state, counts = walk(core, core.init(theta, own.complete({"lr": 0.5})), 0, 2)
    exact: Any = {"tolerance_grad": 0.0, "tolerance_change": 0.0, "line_search_fn": "strong_wolfe"}
    expected, gradients = loop(partial(torch.optim.LBFGS, **exact), {"lr": 0.5}, theta[0], True, steps=2)
    torch.testing.assert_close(state.parameters[0], expected, rtol=1e-12, atol=1e-13)
    assert int(counts[0]) == gradients > 2 * 20  # a step has twenty iterations of a gradient or more


@pytest.mark.parametrize("name", [*CLASSES, "Noisy"])
def test_a_resumed_trial_goes_on_bitwise_and_rows_do_not_see_each_other(name: str, package: str) -> None:
    own = recipe(f"{package}.Noisy") if name == "Noisy" else recipe(f"torch.optim.{name}", **CLASSES[name])
    core, values = compose(own.structure), own.complete({"lr": 0.01})
    theta = rows(batch(0, torch.float64), 2).float()
    together, _ = walk(core, core.init(theta, values), 0, 12)
    alone, _ = walk(core, core.init(theta[1:], values), 0, 7)
    buffer = io.BytesIO()
    torch.save({**alone.state_dict(), "memories": (alone.memories[0].optimizer.state_dict(),)}, buffer)
    straight, _ = walk(core, alone, 7, 12)
    torch.manual_seed(5)  # of no effect
    resumed = State(**torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    resumed, _ = walk(core, resumed, 7, 12)
    assert torch.equal(resumed.parameters, straight.parameters)
    assert torch.equal(together.parameters[1:], straight.parameters)


def test_generators_are_left_as_they_were(package: str) -> None:
    core, h = compose(recipe(f"{package}.Noisy").structure), batch(0, torch.float64)
    before = torch.get_rng_state(), random.getstate()
    core.step(core.init(rows(h, 1), {"lr": 0.1}), h)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]


def test_the_rate_of_each_step_is_the_states(package: str) -> None:
    """A schedule changes the hyperparameter of a state from step to step."""
    core = compose(recipe(f"{package}.Plain").structure)
    theta = rows(batch(0, torch.float64), 1)
    state = core.init(theta, {"lr": 0.1})
    state, _ = core.step(state, batch(0, torch.float64))
    state.hyperparameters["lr"].fill_(0.0)
    after, info = core.step(state, batch(1, torch.float64))
    assert torch.equal(after.parameters, state.parameters) and info.step_size.item() == 0


def test_a_class_may_replace_its_data_and_change_its_gradient(package: str) -> None:
    theta = rows(batch(0, torch.float64), 1)
    for name, factor in (("Reassigning", 1.0), ("Halving", 0.5)):
        core = compose(recipe(f"{package}.{name}").structure)
        state, info = core.step(core.init(theta, {"lr": 0.1}), batch(0, torch.float64))
        torch.testing.assert_close(state.parameters, theta - 0.1 * factor * info.gradient, rtol=1e-13, atol=0)
        torch.testing.assert_close(info.gradient, batch(0, torch.float64).evaluate(theta).gradient)


def test_a_class_with_modes_steps_in_training_and_is_read_in_evaluation(package: str) -> None:
    core, h = compose(recipe(f"{package}.Modes").structure), batch(0, torch.float64)
    state, shift = core.init(rows(h, 2), {"lr": 0.1}), torch.zeros(2, h.layout.size, dtype=torch.float64)
    for _ in range(3):
        inner = state.parameters + shift
        gradient = h.evaluate(inner).gradient
        shift = 0.5 * 0.1 * gradient
        state, info = core.step(state, h)
        expected = inner - 0.1 * gradient - shift
        torch.testing.assert_close(state.parameters, expected, rtol=1e-12, atol=1e-13)
        assert torch.as_tensor(info.gradients).tolist() == [1, 1]


def test_a_row_that_is_not_finite_diverges_alone(package: str) -> None:
    core = compose(recipe(f"{package}.Halving").structure)
    theta = rows(batch(0, torch.float64), 2)
    theta[0, 0] = torch.nan
    state, info = core.step(core.init(theta, {"lr": 0.1}), batch(0, torch.float64))
    assert info.finite.tolist() == [False, True] and state.diverged_at.tolist() == [1, 0]
    singular = compose(recipe(f"{package}.Singular").structure)
    _, info = singular.step(singular.init(theta[1:], {"lr": 0.1}), batch(0, torch.float64))
    assert info.finite.tolist() == [False]


def test_arguments_are_hyperparameters_or_settings(package: str) -> None:
    sgd = recipe("torch.optim.SGD", momentum=0.5, nesterov=True, foreach=None)
    assert sgd.hyperparameters == ("lr", "momentum", "dampening", "weight_decay")
    assert sgd.fixed == {"momentum": 0.5, "dampening": 0.0, "weight_decay": 0.0} and sgd.free == ("lr",)
    assert dict(sgd.structure.chosen)["arguments"] == {"nesterov": True, "foreach": None}
    again = structure_of(json.loads(json.dumps(choices_of(sgd.structure))))
    assert again.chosen == sgd.structure.chosen
    own = recipe(f"{package}.NoRate")
    assert own.fixed == {"rate": 0.1} and own.free == ()
    own = recipe(f"{package}.NoRate", limit=2, far=3.5, scale=4)
    assert own.fixed == {"rate": 0.1, "limit": 2.0, "far": 3.5}
    assert own.structure.chosen["arguments"] == {"scale": 4}
    searched = config_of(
        {"optimizer": "torch.optim.Rprop", "fixed": {"step_sizes.1": 20}},
        {"etas.0": {"low": 0.4, "high": 0.6}},
    )
    assert list(searched.space("x")) == ["lr", "etas.0"] and searched.recipe("x").fixed["step_sizes.1"] == 20
    assert searched.space("x")["lr"].log


def test_the_order_of_hyperparameters_is_that_of_the_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampler draws in this order, which must not depend on the classes read before."""
    for name in [name for name, own in HYPERPARAMETERS.items() if own == of_class(name)]:
        monkeypatch.delitem(HYPERPARAMETERS, name)
    recipe("torch.optim.Adagrad")
    assert list(HYPERPARAMETERS)[-3:] == ["lr_decay", "initial_accumulator_value", "eps"]
    assert recipe("torch.optim.NAdam").hyperparameters == (
        "lr", "betas.0", "betas.1", "eps", "weight_decay", "momentum_decay",
    )  # fmt: skip


def test_a_class_needs_no_rate(package: str) -> None:
    own = recipe(f"{package}.NoRate", scale=3)
    core, theta = compose(own.structure), rows(batch(0, torch.float64), 1)
    state, info = core.step(core.init(theta, own.complete({})), batch(0, torch.float64))
    torch.testing.assert_close(state.parameters, theta - 0.3 * info.gradient, rtol=1e-12, atol=0)
    assert info.step_size.isnan().all()


def error_of(recipe: Mapping[str, Any], space: Mapping[str, Any] | None = None) -> str:
    with pytest.raises(InputError) as caught:
        refuse_classes(config_of(recipe, space), ["x"])
    (line,) = caught.value.lines
    return line


@pytest.mark.parametrize(
    ("path", "fixed", "line"),
    [
        ("no_such.Soap", {}, "recipe x: the package no_such is not installed: pip install no-such"),
        ("odd_broken.Adam", {}, "F: recipes.x: cannot import odd_broken: no GPU here"),
        ("json.JSONDecoder", {}, "F: recipes.x: json is a module of Python, which has no optimizers"),
        ("odd_classes.NoStep", {},
         "F: recipes.x: odd_classes.NoStep must be a subclass of torch.optim.Optimizer with a step()"),
        ("torch.optim.SGD", {"weight_decay": ".inf"},
         "F: recipes.x: weight_decay must be in [0, inf), got inf"),
        ("torch.optim.NAdam", {"betas": [0.9, 0.99]},
         "F: recipes.x: betas is a tuple: give its elements betas.0, betas.1"),
        ("torch.optim.SGD", {"nesterov": [{"bias": True}]},
         "F: recipes.x: nesterov must be one value for all parameters, got [{'bias': True}]"),
        ("odd_classes.Needy", {"rho": 1.0}, "F: recipes.x: odd_classes.Needy needs depth: give it in fixed"),
        ("torch.optim.NAdam", {"betas.0": 1.5},
         "recipe x: torch.optim.NAdam: Invalid beta parameter at index 0: 1.5"),
        ("torch.optim.SparseAdam", {}, "recipe x: torch.optim.SparseAdam: step() failed: SparseAdam does"),
        *((f"odd_classes.{name}", {},
           f"recipe x: odd_classes.{name}: a resumed run would differ, since state_dict() does not hold")
          for name in ("Seldom", "NumPyNoise")),
    ],
)  # fmt: skip
def test_a_class_that_cannot_serve_is_refused_in_one_line(
    path: str, fixed: Any, line: str, package: str
) -> None:
    said = error_of({"optimizer": path, "fixed": fixed})
    assert said.startswith(line) and "\n" not in said


def test_both_ends_of_a_range_are_tried() -> None:
    said = error_of({"optimizer": "torch.optim.NAdam"}, {"betas.1": {"low": 0.9, "high": 1.2}})
    assert said == "recipe x: torch.optim.NAdam: Invalid beta parameter at index 1: 1.2"


def test_a_file_that_hides_a_package_is_refused(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{package}.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert error_of({"optimizer": f"{package}.Plain"}) == (
        f"F: recipes.x: {package} must be an installed package, got {tmp_path / package}.py: "
        "a file of yours needs --plugin FILE.py"
    )


def test_classes_stand_for_recipes_everywhere() -> None:
    name = "torch.optim.RAdam"
    own = ["spaces.torch.optim.RAdam.betas.0.low=0.8", "spaces.torch.optim.RAdam.betas.0.high=0.95"]
    config = load(overrides=[f"search.recipes=[hf, {name}]", f"train.longer.{name}=2", *own])
    assert config.searched == ("hf", name) and config.train.longer == {name: 2}
    assert list(config.space(name)) == ["lr", "betas.0"] and config.space(name)["betas.0"].low == 0.8
    assert parse(config.plain(), "again") == config and config.searching([name]).searched == (name,)
    other = load(
        overrides=["recipes.x.optimizer=torch.optim.SGD", "recipes.x.fixed.momentum=0.9",
                   "recipes.y={base: torch.optim.RAdam, betas.1: 0.99}"]
    )  # fmt: skip
    assert other.recipe("x").fixed["momentum"] == 0.9 and other.recipe("y").fixed["betas.1"] == 0.99


def test_a_class_is_listed_with_its_arguments(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "recipes", f"{package}.Needy", "torch.optim.SGD"]) == 0
    said = capsys.readouterr().out
    assert "fixed: rho = required\n" in said and "settings: depth = required\n" in said
    assert "fixed: momentum = 0, dampening = 0, weight_decay = 0\n" in said and "nesterov = False" in said
    assert main(["config", "recipes", "torch.optim.SGDD", "SGD"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "ahf: torch.optim.SGDD: torch.optim has no SGDD; did you mean 'SGD'?",
        "ahf: SGD: must be a class with its module, such as torch.optim.NAdam",
    ]


TINY = [*["-o", "task.batch_size=10", "-o", "train.steps=3", "-o", "train.eval_every=2"],
        *["-o", "train.eval_subset=null", "-o", "search.trials=2", "-o", "run.workers=1", "-q"]]  # fmt: skip


@pytest.fixture
def few(bare: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands find the small files."""
    monkeypatch.setenv("AHF_DATA_DIR", str(write(bare / "data", contents)))


@pytest.mark.long
@pytest.mark.usefixtures("one_process", "one_figure", "few")
def test_the_example_of_the_page_runs_word_for_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    section = page.partition("## Any optimizer class\n")[2].partition("\n## ")[0]
    assert len(section.splitlines()) <= 27
    blocks = dict(re.findall(r"```(sh|yaml)\n(.*?)```", section, re.DOTALL))
    (tmp_path / "own.yaml").write_text(blocks["yaml"])
    monkeypatch.chdir(tmp_path)
    for command in blocks["sh"].splitlines():
        assert main([*shlex.split(command)[1:], *TINY]) == 0
    study = Study(tmp_path / "results", "own")
    trials = study.finished("fast_sgd")
    assert len(trials) == 2 and all(t.status == "ok" and t.params["momentum"] == 0.9 for t in trials)
    assert main(["compare", "--study", "own", "-q"]) == 0
    assert "the class torch.optim.SGD" in (study.folder / "report" / "report.html").read_text()
    assert main(["timing", "own", "-q"]) == 0
    manifest = study.manifest()
    (study.folder / "manifest.json").unlink()
    assert main(["repair", "own", "-q"]) == 0
    assert study.manifest()["identity"] == manifest["identity"]
    assert capsys.readouterr().err == ""


@pytest.mark.long
@pytest.mark.usefixtures("one_process", "one_figure", "few")
def test_a_study_outlives_its_package(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{package}.NoRate"
    words = ["--recipe", name, "-o", f"spaces.{name}.rate={{low: 0.01, high: 0.1, log: true}}", *TINY]
    own = ["--study", "s", "--results", str(tmp_path)]
    assert main(["search", *words, *own]) == 0
    assert package in Study(tmp_path, "s").manifest()["versions"]
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path / "lib" / "site-packages")])
    monkeypatch.delitem(sys.modules, package)
    HYPERPARAMETERS.pop("rate")  # as in another process
    SLOTS["optimizer"].pop(name)
    assert main(["compare", *own]) == 0
    assert main(["export", "s", "--results", str(tmp_path)]) == 0
    points = sensitivity_points(load_study(tmp_path / "s").trials, [name])
    assert set(points["hyperparameter"]) == {"rate"} and len(points) == 2
    capsys.readouterr()
    assert main(["search", *words, *own, "--trials", "3"]) == 2
    said = capsys.readouterr().err
    assert said == f"ahf: recipe {name}: the package {package} is not installed: pip install odd-classes\n"
    assert main(["search", *TINY, *own, "--recipe", "adam"]) == 2
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("key", "settings", "expected"),
    [("lr", [0.1, 0.2], True), ("sigma", [0.001, 100.0], False), ("eps", [1e-9, 1e-6], True),
     ("eps", [0.0, 1.0], False), ("eps", [0.5, 0.9], False)],
)  # fmt: skip
def test_an_argument_of_a_class_is_drawn_by_its_spread(
    key: str, settings: list[float], expected: bool
) -> None:
    declare(["eps"])
    assert on_log_axis(key, pd.Series(settings)) is expected


@pytest.mark.usefixtures("few")
def test_wrong_hyperparameters_of_a_run_are_refused_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "torch.optim.NAdam", *TINY, "--results", str(tmp_path / "r")]
    for given, line in {
        "betas.0=1.5": "recipe torch.optim.NAdam: torch.optim.NAdam: Invalid beta parameter at index 0: 1.5",
        "betas.0=x": "--param: betas.0 must be a number, got 'x'",
        "beta=1": "--param: torch.optim.NAdam has no hyperparameter 'beta'; did you mean 'betas.1'?",
    }.items():
        assert main([*words, "-p", given]) == 2
        assert capsys.readouterr().err == f"ahf: {line}\n"
    assert not (tmp_path / "r").exists()

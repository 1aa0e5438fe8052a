"""Optimizer classes of installed packages as recipes."""

from __future__ import annotations

import site
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ahf_cli.cli import main
from ahf_cli.config.load import load, parse, stored
from ahf_cli.errors import InputError
from ahf_cli.optim import compose_trial
from ahf_cli.optim.foreign import decimal
from ahf_cli.recipes.classes import recipe_of
from ahf_cli.search.machine import refuse_classes
from ahf_cli.study.store import Study
from ahf_cli.training.train import StoppedError, begin, restore, train
from tests.conftest import kept_registries
from tests.problems import dense_outputs, problem, rows
from tests.processes import python
from tests.test_training import PLAN, comparable, task

PACKAGE = """
import torch
from torch.optim import Optimizer


class Plain(Optimizer):
    def __init__(self, params, lr=0.1, noise: float = 0, mode: str = "down", rates=(0.5, 0.25)):
        super().__init__(params, dict(lr=lr, noise=noise, mode=mode, rates=rates))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * (p.grad + group["noise"] * torch.randn_like(p))


class Forgetful(Plain):
    count = 0

    def step(self, closure=None):
        self.count += 1
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p -= self.count * p.grad


class Closed(Plain):
    def step(self, closure=None):
        super().step()
        self.state[self.param_groups[0]["params"][0]]["open"] = lambda: None


class Second(Plain):
    def step(self, closure=None):
        self.param_groups[0]["params"][0].grad.sum().backward()


class Needy(Optimizer):
    def __init__(self, params, radius, lr=0.1):
        super().__init__(params, dict(lr=lr, radius=radius))

    def step(self, closure=None):
        pass


class Other:
    pass
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package `outside`, and registries that forget it."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "outside.py").write_text(textwrap.dedent(PACKAGE))
    monkeypatch.syspath_prepend(str(folder))
    installed = site.getsitepackages()
    monkeypatch.setattr(site, "getsitepackages", lambda: [*installed, str(folder)])
    monkeypatch.delitem(__import__("sys").modules, "outside", raising=False)
    with kept_registries():
        yield


LEAST: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "NAdam": ({"lr": 0.05}, {}),
    "SGD": ({"lr": 0.1, "momentum": 0.8}, {"nesterov": True}),
    "RAdam": ({"lr": 0.05, "betas.1": 0.99}, {}),
    "Adadelta": ({"lr": 1.0, "rho": 0.8}, {}),
    "LBFGS": ({"lr": 0.5}, {"max_iter": 4, "line_search_fn": "strong_wolfe"}),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", LEAST)
def test_a_class_steps_as_in_a_plain_loop_row_by_row(name: str, dtype: torch.dtype) -> None:
    values, settings = LEAST[name]
    recipe = recipe_of("x", f"torch.optim.{name}", values | settings, ())
    core = compose_trial(recipe.structure, 20)
    theta = rows(problem("mlp"), 1).to(dtype)
    spread: dict[str, torch.Tensor | float] = {k: float(v) for k, v in recipe.complete({}).items()}
    state = core.init(
        theta.expand(2, -1).clone(), spread | {"lr": torch.tensor([values["lr"], 1e-3], dtype=dtype)}
    )
    plain = {k: v for k, v in values.items() if "." not in k}
    betas = {"betas": (0.9, values["betas.1"])} if "betas.1" in values else {}
    leaf = nn.Parameter(theta[0].clone())
    pieces = [nn.Parameter(p[0].clone()) for p in problem("mlp").layout.split(theta)]
    theirs = getattr(torch.optim, name)(pieces, **plain, **betas, **settings)
    gradients = 0
    for step in range(20):
        h = problem("mlp", seed=step)
        h.model.to(dtype)
        h.inputs = h.inputs.to(dtype)

        def closure(h: Any = h) -> torch.Tensor:
            nonlocal gradients
            gradients += 1
            theirs.zero_grad()
            loss = F.cross_entropy(dense_outputs(h)(torch.cat([p.flatten() for p in pieces])), h.targets)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        theirs.step(closure) if name == "LBFGS" else (closure(), theirs.step())
        state, info = core.step(state, h)
        tolerance = 1e-9 if dtype == torch.float64 else 2e-3
        tolerance *= 30 if name == "LBFGS" else 1
        if name == "LBFGS" and dtype == torch.float32 and step > 2:
            break  # its line search magnifies rounding
        expected = torch.cat([p.detach().flatten() for p in pieces])
        torch.testing.assert_close(state.parameters[0], expected, rtol=tolerance, atol=tolerance)
    assert leaf.shape == expected.shape and not torch.equal(state.parameters[1], state.parameters[0])
    if name == "LBFGS":
        counts = info.gradients
        assert isinstance(counts, torch.Tensor) and 1 <= int(counts[0]) <= 6


def test_the_schedule_sets_the_learning_rate_of_every_step() -> None:
    recipe = recipe_of("x", "outside.Plain", {}, (), schedule="linear")
    core, h = compose_trial(recipe.structure, 4), problem("mlp")
    state = core.init(rows(h, 1), recipe.complete({"lr": 0.4}))
    for share in (1.0, 0.75, 0.5, 0.25):
        gradient = h.evaluate(state.parameters).gradient
        state, info = core.step(state, h)
        torch.testing.assert_close(info.update, -0.4 * share * gradient)


@pytest.mark.parametrize(
    ("path", "given"),
    [("torch.optim.Adam", {}), ("outside.Plain", {"noise": 0.1}), ("torch.optim.LBFGS", {"max_iter": 3})],
)
def test_a_resumed_trial_is_bitwise_an_uninterrupted_one(path: str, given: dict[str, Any]) -> None:
    """Also with random numbers of the class."""
    recipe = recipe_of("x", path, given, ())
    whole = begin(task(), recipe, PLAN, {0: {"lr": 0.05}})
    train(task(), whole)
    saved: list[bytes] = []
    cut = begin(task(), recipe, PLAN, {0: {"lr": 0.05}})
    with pytest.raises(StoppedError):
        train(
            task(), cut, on_checkpoint=lambda slot, data, step: saved.append(data),
            should_stop=lambda: cut.step == 3,
        )  # fmt: skip
    again = restore(task(), recipe, PLAN, saved[0])
    train(task(), again)
    assert comparable(again.trials[0].curve) == comparable(whole.trials[0].curve)
    assert comparable(again.trials[0].steps) == comparable(whole.trials[0].steps)


def test_trials_side_by_side_are_those_alone() -> None:
    recipe = recipe_of("x", "torch.optim.LBFGS", {"max_iter": 3}, ())
    both = begin(task(), recipe, PLAN, {0: {"lr": 0.05}, 1: {"lr": 0.01}})
    train(task(), both)
    for k, lr in enumerate((0.05, 0.01)):
        alone = begin(task(), recipe, PLAN, {k: {"lr": lr}})
        train(task(), alone)
        torch.testing.assert_close(both.state.parameters[k], alone.state.parameters[0], rtol=1e-3, atol=1e-4)
        assert both.trials[k].gradients == alone.trials[0].gradients > 6


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"optimizer": "outside.Other"}, "outside.Other must be a subclass of torch.optim.Optimizer"),
        ({"optimizer": "torch.optim.Optimizer"}, "must be a subclass of torch.optim.Optimizer with a step()"),
        ({"optimizer": "torch.optim.Nadam"}, "torch.optim has no Nadam; did you mean 'NAdam'?"),
        ({"optimizer": "Adam"}, "optimizer must be a class with its module, such as torch.optim.NAdam"),
        ({"optimizer": "torch.optim.SGD", "fixed": {"momentun": 0.9}}, "did you mean 'momentum'?"),
        ({"optimizer": "torch.optim.SGD", "fixed": {"momentum": "x"}}, "momentum must be a number, got 'x'"),
        ({"optimizer": "torch.optim.SGD", "fixed": {"nesterov": {"a": 1}}}, "one value for all parameters"),
        ({"optimizer": "torch.optim.SGD", "fixed": 3}, "fixed must be a mapping of arguments, got 3"),
        ({"optimizer": "torch.optim.SGD", "curvature": "ggn"}, "curvature does not go with optimizer"),
        ({"optimizer": "torch.optim.SGD", "base": "adam"}, "base does not go with optimizer"),
        ({"optimizer": "torch.optim.SGD", "schedule": "step"}, "schedule must be one of constant"),
        ({"optimizer": "outside.Needy"}, "outside.Needy needs radius: give it in fixed"),
        ({"optimizer": "torch.nowhere.SGD"}, "cannot import torch.nowhere"),
    ],
)
def test_wrong_classes_and_arguments_are_named(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse({"study": "s", "recipes": {"x": recipe}}, "file")
    assert len(caught.value.lines) == 1 and message in caught.value.lines[0]
    assert caught.value.lines[0].startswith("file: recipes.x")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"optimizer": "nowhere_at_all.Foo"}, "the package nowhere_at_all is not installed: pip install"),
        ({"optimizer": "torch.optim.Muon"}, "torch.optim.Muon: Muon only supports 2D parameters"),
        ({"optimizer": "torch.optim.SGD", "fixed": {"lr": -1.0}}, "lr must be in (0, inf), got -1.0"),
        ({"optimizer": "torch.optim.SGD", "fixed": {"nesterov": True}}, "Nesterov momentum requires"),
        ({"optimizer": "outside.Forgetful"}, "a resumed run would differ, since state_dict() does not hold"),
        ({"optimizer": "outside.Closed"}, "its memory cannot be saved in a checkpoint"),
        ({"optimizer": "outside.Second"}, "step() failed: element 0 of tensors does not require grad"),
    ],
)
def test_a_class_that_cannot_serve_is_refused_before_a_run(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        config = parse({"study": "s", "recipes": {"x": recipe}, "search": {"recipes": ["x"]}}, "file")
        refuse_classes(config, config.searched)
    assert len(caught.value.lines) == 1 and message in caught.value.lines[0]


def test_a_class_of_the_current_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class Mine: pass")
    command = "from ahf_cli.cli import main; import sys; sys.exit(main(['train', 'mine.Mine']))"
    done = python(command, cwd=tmp_path)
    assert done.returncode == 2 and "mine must be an installed package" in done.stderr
    assert "needs --plugin" in done.stderr and "Traceback" not in done.stderr


def test_hyperparameters_follow_from_the_signature() -> None:
    recipe = recipe_of("x", "outside.Plain", {"noise": 1}, ("rates.0",))
    assert recipe.hyperparameters == ("lr", "noise", "rates.0", "rates.1")
    assert recipe.fixed == {"noise": 1.0, "rates.0": 0.5, "rates.1": 0.25}
    config = parse(
        {
            "study": "s",
            "recipes": {"x": {"optimizer": "outside.Plain", "fixed": {"mode": "up", "rates.1": "1e-1"}}},
            "spaces": {"x": {"rates.0": {"low": 0.1, "high": 0.9}}},
            "search": {"recipes": ["x"]},
        },
        "file",
    )
    assert list(config.space("x")) == ["lr", "rates.0"] and config.recipe("x").fixed["rates.1"] == 0.1
    assert config.identity()["recipes"]["x"]["structure"] == {
        "optimizer": "outside.Plain", "arguments": {"mode": "up"}
    }  # fmt: skip
    own = load("smoke", None, ["recipes.x={optimizer: outside.Plain}", "spaces.x.rates.0.low=0.3",
                               "spaces.x.rates.0.high=0.4", "search.recipes=[x]"])  # fmt: skip
    assert own.space("x")["rates.0"].low == 0.3


def test_a_study_is_read_without_the_class() -> None:
    text = "study: s\nrecipes:\n  x: {optimizer: nowhere_at_all.Foo, fixed: {beta: 0.5, mode: fast}}\n"
    config = stored(text + "search: {recipes: [x]}\nspaces:\n  x: {eps: {low: 0.1, high: 1}}\n", "f", "s")
    assert config.recipe("x").hyperparameters == ("lr", "beta", "eps")


def test_numbers_of_float32_are_the_decimals_that_were_meant() -> None:
    for value in (0.999, 1e-8, 0.1, 123456.7):
        assert decimal(torch.tensor(value, dtype=torch.float32)) == value
        assert decimal(torch.tensor(value, dtype=torch.float64)) == value


COMMON = ["--preset", "smoke", "-o", "task.subset=400", "-o", "task.batch_size=64", "-o", "train.steps=4"]


def test_a_class_is_trained_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = [*COMMON, "-q", "--results", str(tmp_path)]
    assert main(["train", "torch.optim.NAdam", "-p", "lr=0.002", *results]) == 0
    assert "test accuracy" in capsys.readouterr().out
    assert main(["train", "torch.optim.NAdam", "-p", "betas.2=0.1", *results]) == 2
    assert "no hyperparameter 'betas.2'; did you mean 'betas." in capsys.readouterr().err


@pytest.mark.long
def test_a_class_is_searched_compared_and_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = ["--results", str(tmp_path / "r")]
    names = ["--recipe", "torch.optim.NAdam", "--recipe", "adam"]
    search = ["search", *names, "--trials", "2", "--design", "fair", "--study", "own", *COMMON, "-q"]
    assert main([*search, *results, "-o", "search.reruns=2"]) == 0
    assert "torch.optim.NAdam: 2 trials" in capsys.readouterr().out
    assert main(["compare", "--study", "own", *results]) == 0
    assert "torch.optim.NAdam" in capsys.readouterr().out
    assert main(["pack", "own", "--to", str(tmp_path / "p"), *results]) == 0
    structure = Study(tmp_path / "p", "own").manifest()["identity"]["recipes"]["torch.optim.NAdam"]
    assert structure["structure"] == {"optimizer": "torch.optim.NAdam"}
    assert main([*search, *results, "-o", "search.reruns=2", "--trials", "3"]) == 0  # it grows

"""Optimizer classes of installed packages as recipes."""

from __future__ import annotations

import site
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ahf_cli.cli import main
from ahf_cli.config.load import parse
from ahf_cli.errors import InputError
from ahf_cli.optim.foreign import decimal
from ahf_cli.search.machine import refuse_classes
from ahf_cli.study.store import Study
from tests.conftest import kept_registries

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

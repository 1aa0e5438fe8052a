"""A term of an equation that is not finite in training is named with its step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ahf_cli import plugin
from ahf_cli.cli import main
from ahf_cli.tasks.equations import Equation, Residuals, Term
from ahf_cli.tasks.jets import Jet
from ahf_cli.tasks.models import tanh_64
from ahf_cli.tasks.poisson import inside, on_faces

WORDS = ["-o", "task.data=odd", "-o", "task.model=tanh_64", "-o", "task.loss=least_squares", "-o",
         "task.dtype=float64", "-o", "task.batch_size=28", "-o", "train.eval_every=1000"]  # fmt: skip


def register(boundary: object) -> None:
    @plugin.equation("odd")
    def odd() -> Equation:
        return Equation(
            (
                Term("equation", 20, lambda random, n: inside(random, n, 2), lambda u, x: u.second),
                Term("boundary", 8, lambda random, n: on_faces(random, n, 2), boundary),  # type: ignore[arg-type]
            ),
            lambda x: x[..., 0],
            (1.0, 1.0),
        )


def logarithm(u: Jet, x: Tensor) -> Tensor:
    return torch.log(u.value + 3) - 10  # finite at first; the fit drives u up, and steps beyond −3


@pytest.mark.usefixtures("registries")
def test_the_term_and_its_step_are_said_wherever_the_trial_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register(logarithm)
    # A learning rate without sense: the first update leaves the logarithm's domain.
    words = [*WORDS, "-o", "train.steps=40", "--results", str(tmp_path), "--study", "odd"]
    assert main(["train", "sgd_momentum", "-p", "lr=3", *words]) == 0
    said = capsys.readouterr()
    (file,) = tmp_path.rglob("result.json")
    found = json.loads(file.read_text())
    line = f"term 'boundary' was not finite at step {found['steps']}"
    assert found["status"] == "diverged" and found["error"] == line and 1 <= found["steps"] <= 40
    assert f"diverged at step {found['steps']} of 40 ({line})" in said.out
    assert main(["show", "odd", "sgd_momentum/0", "--results", str(tmp_path)]) == 0
    assert line in " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("registries")
def test_a_derivative_that_is_not_finite_names_its_term() -> None:
    terms = {
        "root": lambda u, x: torch.sqrt((u.value - u.value.detach()).abs()),  # 0, with an infinite slope
        "log": lambda u, x: torch.log(u.value - 1e9),
        "fine": lambda u, x: u.value,
    }
    points = torch.rand(5, 3, dtype=torch.float64)
    said = {}
    for name, residual in terms.items():
        term = Term(name, 5, lambda random, n: inside(random, n, 2), residual)
        own = Residuals(tanh_64((2,), 1).double(), Equation((term,), lambda x: x[..., 0], (1.0, 1.0)))
        said[name] = own.not_finite(points, dict(own.named_parameters()))
    assert said == {"root": "the derivative of term 'root'", "log": "term 'log'", "fine": ""}

"""Differential equations as tasks: derivatives, points, residuals, the command line, a plug-in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ahf_cli import plugin
from ahf_cli.cli import main
from ahf_cli.config.load import load as read
from ahf_cli.errors import InputError
from ahf_cli.optim.operators import gauss_newton
from ahf_cli.tasks.data import load
from ahf_cli.tasks.datasets import DATA_SETS
from ahf_cli.tasks.equations import FRESH, TRAIN, Equation, Term, drawn, find, residuals
from ahf_cli.tasks.jets import Jet, Sine, jet
from ahf_cli.tasks.metrics import digits
from ahf_cli.tasks.models import tanh_64
from ahf_cli.tasks.poisson import inside
from ahf_cli.tasks.task import Task
from ahf_cli.training.evaluate import evaluate
from tests.searches import serial_pool

dense_hessian: Any = torch.autograd.functional.hessian
dense_jacobian: Any = torch.autograd.functional.jacobian
EQUATIONS = ("poisson2d_sin", "poisson2d_cos", "poisson5d_cos", "heat1d")
ROOT = Path(__file__).parents[1]


def small(equation: Equation, counts: Sequence[int] = (7, 5)) -> Equation:
    """Return the equation with fewer points."""
    terms = (replace(term, count=n) for term, n in zip(equation.terms, counts, strict=True))
    return replace(equation, terms=tuple(terms))


def exact_jet(equation: Equation, x: Tensor) -> Jet:
    """Return the solution's jet by nested automatic differentiation."""
    x = x.clone().requires_grad_()
    u = equation.solution(x)
    (gradient,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    second = torch.zeros_like(u)
    for i, c in enumerate(equation.second):
        (row,) = torch.autograd.grad(gradient[:, i].sum(), x, retain_graph=True)
        second = second + c * row[:, i]
    return Jet(u.detach(), gradient.detach(), second.detach())


def task(data: str = "poisson2d_sin", model: str = "tanh_64", dtype: torch.dtype = torch.float64) -> Task:
    points = load(None, "paper", None, DATA_SETS[data])
    return Task.on(points, model, len(points.train), "cpu", dtype, "least_squares")


@pytest.mark.parametrize("coefficients", [(1.0, 1.0, 1.0), (1.0, 0.0, -2.5), (0.0, 0.0, 0.0)])
def test_a_jet_has_the_derivatives_of_nested_automatic_differentiation(
    coefficients: tuple[float, ...],
) -> None:
    torch.manual_seed(0)
    units = (nn.Tanh(), Sine(), nn.Softplus())
    hidden = [part for n, unit in enumerate(units) for part in (nn.Linear((3, 6, 5)[n], (6, 5, 4)[n]), unit)]
    net = nn.Sequential(*hidden, nn.Linear(4, 1)).double()
    x = torch.randn(9, 3, dtype=torch.float64)
    found = jet(net, x, coefficients)
    second = [dense_hessian(lambda p: net(p)[0], point).diagonal() for point in x]
    gradient = [dense_jacobian(lambda p: net(p)[0], point) for point in x]
    torch.testing.assert_close(found.value, net(x)[:, 0])
    torch.testing.assert_close(found.gradient, torch.stack(gradient))
    weights = torch.tensor(coefficients, dtype=torch.float64)
    expected = torch.stack(second) @ weights
    assert expected.abs().max() > 0.01 or not any(coefficients)
    torch.testing.assert_close(found.second, expected)


def test_a_network_without_a_hidden_layer_has_a_constant_gradient() -> None:
    net = nn.Sequential(nn.Linear(2, 1)).double()
    found = jet(net, torch.rand(4, 2, dtype=torch.float64), (1.0, 1.0))
    weight = next(net.parameters())
    torch.testing.assert_close(found.gradient, weight.expand(4, 2))
    assert found.second.shape == (4,) and not found.second.any()


@pytest.mark.parametrize("name", EQUATIONS)
def test_the_solution_solves_the_equation_at_its_points(name: str) -> None:
    equation = find(name)
    points = drawn(name, equation, (TRAIN,)).images
    u = exact_jet(equation, points[:, :-1])
    for number, term in enumerate(equation.terms):
        r = term.residual(u, points[:, :-1])
        assert float(r[points[:, -1] == number].abs().max()) < 1e-11
        assert float((points[:, -1] == number).sum()) == term.count


@pytest.mark.parametrize("name", EQUATIONS)
def test_the_declared_data_set_is_the_equation(name: str) -> None:
    data, equation = DATA_SETS[name], find(name)
    assert (data.training, data.fresh) == (equation.count, equation.fresh)
    assert data.shape == (len(equation.second),)


def test_boundary_points_lie_on_the_boundary() -> None:
    for name in ("poisson2d_sin", "poisson5d_cos"):
        points = drawn(name, find(name), (TRAIN,)).images
        edge = points[points[:, -1] == 1, :-1]
        assert bool(((edge == 0) | (edge == 1)).any(dim=1).all())
        assert {float(v) for v in edge.flatten() if v in (0, 1)} == {0.0, 1.0}
    heat = drawn("heat1d", find("heat1d"), (TRAIN,)).images
    rest = heat[heat[:, -1] == 1]
    assert int((rest[:, 1] == 0).sum()) == 60 and int(((rest[:, 0] == 0) | (rest[:, 0] == 1)).sum()) == 60


def test_the_loss_is_the_sum_of_the_means_of_both_terms_and_the_error_a_root_mean_square() -> None:
    own = task()
    theta = own.initial(3)[None]
    net = tanh_64((2,), 1).double()
    torch.nn.utils.vector_to_parameters(theta[0], net.parameters())
    points = own.split.train.images
    x, boundary = points[:, :-1], points[:, -1] == 1
    second = torch.stack([dense_hessian(lambda p: net(p)[0], point).trace() for point in x])
    u = net(x)[:, 0]
    solution = torch.sin(math.pi * x[:, 0]) * torch.sin(math.pi * x[:, 1])
    u = u.detach()
    equation = 0.5 * (second + 2 * math.pi**2 * solution)[~boundary].square().mean()
    edge = 0.5 * (u - solution)[boundary].square().mean()
    error = (u - solution)[~boundary].square().mean().sqrt()
    found = evaluate(own, theta, own.split.train)
    assert float(found["loss"]) == pytest.approx(float(equation + edge), rel=1e-12)
    assert float(found["error"]) == pytest.approx(float(error), rel=1e-12)
    objective = own.objective([0], 1, 0)
    assert float(objective.value(theta)) == pytest.approx(float(equation + edge), rel=1e-12)


def test_products_and_jacobians_agree_with_dense_ones() -> None:
    own = task()
    objective, theta = own.batch([0], 1, 0), own.initial(1)[None]
    at = objective.evaluate(theta)
    dense = dense_jacobian(
        lambda v: objective.loss.residuals(  # type: ignore[attr-defined]
            objective._outputs(objective.layout.split(v[None])), objective.targets
        )[0],
        theta[0],
    )
    jacobian = objective.jacobian(theta, 0)
    torch.testing.assert_close(jacobian, dense, rtol=1e-10, atol=1e-12)
    residual = objective.residuals(theta)[0]
    assert float(0.5 * residual.square().sum()) == pytest.approx(float(at.loss), rel=1e-13)
    torch.testing.assert_close(jacobian.T @ residual, at.gradient[0], rtol=1e-9, atol=1e-11)
    v = torch.randn_like(theta)
    torch.testing.assert_close(gauss_newton(at)(v)[0], dense.T @ (dense @ v[0]), rtol=1e-9, atol=1e-10)


def test_new_points_at_each_step_follow_from_seed_stream_and_step() -> None:
    own = task("poisson5d_cos")
    first, again, later = own.batch([4], 1, 0), own.batch([4], 1, 0), own.batch([4], 1, 1)
    assert torch.equal(first.inputs, again.inputs) and not torch.equal(first.inputs, later.inputs)
    both = own.batch([4, 5], 1, 0)
    assert both.own_batches and torch.equal(both.inputs[0], first.inputs)
    assert not torch.equal(both.inputs[0], both.inputs[1])
    expected = drawn("poisson5d_cos", find("poisson5d_cos"), (FRESH, 4, 1, 0))
    assert torch.equal(first.inputs, expected.images) and torch.equal(first.targets, expected.labels)


def test_validation_and_test_points_are_other_draws_of_at_least_9000_points_inside() -> None:
    split = task().split
    assert split.validation is not None
    assert int((split.test.images[:, -1] == 0).sum()) == 9000
    assert not torch.equal(split.test.images, split.validation.images)
    assert not torch.isin(split.train.images[:900, 0], split.test.images[:, 0]).any()


def _constant(u: Jet, x: Tensor) -> Tensor:
    return 0 * x[..., 0] + 1


BAD = [
    ({"residual": _constant}, "its residual must depend on the network"),
    ({"residual": lambda u, x: u.value / 0}, "its residual must be finite in the box, got "),
    ({"residual": lambda u, x: u.gradient}, r"its residual must have shape \(7,\), got \(7, 2\)"),
    ({"draw": lambda random, n: 2 + random.uniform(size=(n, 2))}, r"points must lie in \[0, 1\], got 2\."),
    ({"draw": lambda random, n: random.uniform(size=(n, 3))}, r"draw must return points of shape \(7, 2\)"),
    ({"draw": lambda random, n: np.full((n, 2), np.nan)}, r"points must lie in \[0, 1\], got nan"),
]


@pytest.mark.parametrize(("change", "line"), BAD)
@pytest.mark.usefixtures("registries")
def test_a_wrong_equation_gets_one_line(change: dict[str, object], line: str) -> None:
    term = Term("equation", 7, lambda random, n: inside(random, n, 2), lambda u, x: u.second)

    @plugin.equation("wrong")
    def wrong() -> Equation:
        return Equation((replace(term, **change),), lambda x: x[..., 0], (1.0, 1.0))  # type: ignore[arg-type]

    with pytest.raises(InputError, match=f"^data set wrong: term 'equation': {line}"):
        residuals(tanh_64((2,), 1), "wrong")
    if "draw" in change:
        with pytest.raises(InputError, match=line):
            load(None, "full", None, DATA_SETS["wrong"])


@pytest.mark.usefixtures("registries")
def test_only_a_function_that_returns_an_equation_is_registered() -> None:
    with pytest.raises(ValueError, match="'nothing': the function must return an Equation with terms, got 3"):

        @plugin.equation("nothing")
        def nothing() -> int:
            return 3


PINN = ["--preset", "pinn", "-o"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("task.loss=squared_error", "must be least_squares for task.data poisson2d_sin, got 'squared_error'"),
        ("task.data=poisson5d_cos", "task.batch_size: must be 3500, the points of poisson5d_cos"),
        ("task.subset=1020", "task.subset: must be null for an equation, got 1020"),
        ("task.dtype=float16", "task.dtype: must be one of float32, float64, got 'float16'"),
    ],
)  # fmt: skip
def test_a_wrong_configuration_of_an_equation_gets_one_line(change: str, line: str) -> None:
    with pytest.raises(InputError, match=line):
        read("pinn", None, [change])


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("task.loss=least_squares", "least_squares is a loss for targets that are numbers"),
        (
            "search.recipes=[lm]",
            "task.loss: must be a sum of squares, as squared_error is, for recipe lm",
        ),
    ],
)
def test_a_task_of_classes_has_no_least_squares(change: str, line: str) -> None:
    with pytest.raises(InputError, match=line):
        read("quick", None, [change])


def test_a_model_without_second_derivatives_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "lm", *PINN, "task.model=mlp", "--results", str(tmp_path)]
    assert main(words) != 0
    said = capsys.readouterr().err
    assert "task.model: mlp cannot be made" in said and "second derivatives" in said


def test_float32_is_warned_of_with_the_floor_of_its_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "adam", *PINN, "task.dtype=float32", "-o", "train.steps=1", "--results", str(tmp_path)]
    assert main(words) == 0
    assert "warning: task.dtype: float32 rounds" in capsys.readouterr().err


@pytest.mark.usefixtures("registries")
def test_the_example_of_an_own_equation_trains_to_its_solution(tmp_path: Path) -> None:
    words = ["--plugin", "examples/own_equation.py", "--config", "examples/own_equation.yaml"]
    words += ["-o", "train.steps=40", "--results", str(tmp_path), "-q"]
    assert main(["train", "lm_geodesic", *words]) == 0
    (file,) = tmp_path.rglob("curve.csv")
    first, *_, last = [line.split(",") for line in file.read_text().splitlines()[1:]]
    at = file.read_text().splitlines()[0].split(",").index("test_error")
    assert float(last[at]) < 0.01 < float(first[at])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.0000"), (0.8123, "0.8123"), (1e-3, "0.0010"), (4.271e-7, "4.27e-07"), (2e6, "2.00e+06"),
     (math.nan, "nan"), (math.inf, "inf"), (-3e-5, "-3.00e-05")],
)  # fmt: skip
def test_numbers_have_four_decimals_or_three_digits(value: float, text: str) -> None:
    assert digits(value) == text


def test_published_values_are_lines_of_the_headline_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their panel has a logarithmic axis that holds them and the curves."""
    from matplotlib.figure import Figure

    from ahf_cli.report.canvas import THEMES
    from ahf_cli.report.exhibits.curves import curves
    from ahf_cli.report.exhibits.equal_cost import equal_cost
    from ahf_cli.report.study_data import load_study

    monkeypatch.setattr("ahf_cli.search.run.process_pool", serial_pool)
    words = ["search", *PINN, "train.steps=1", "-o", "train.longer={}", "-o", "search.trials=2"]
    words += ["-o", "search.reruns=1", "-o", "search.recipes=[lm, adam_linear]", "-o", "run.workers=1"]
    words += ["-o", "recipes={adam_linear: {base: adam}}", "-o", "spaces={}", "-o", "train.eval_every=1"]
    assert main([*words, "--results", str(tmp_path), "-q"]) == 0
    data, marked = load_study(tmp_path / "pinn"), {"published": 3e-7}
    drawn = curves(data.trials, data.curves, data.planned, "iqr", data.metrics, {}, marked)
    cost = equal_cost(data.curves, data.recipes, "iqr", data.metrics.headline, references=marked)
    assert not isinstance(cost, str)
    for drawing, held in ((drawn, (False, True)), (cost, (True, True))):
        figure = Figure()
        drawing.draw(figure, THEMES["screen"])
        for axes, has in zip(figure.axes, held, strict=True):
            assert axes.get_yscale() == "log" and ("published" in [t.get_text() for t in axes.texts]) is has
            assert bool(axes.get_ylim()[0] < 3e-7) is has
        assert "Dotted lines are published values: published 3e-07." in drawing.caption[0]

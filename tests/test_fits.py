"""Small fits as tasks: published values, derivatives, starts, rules, and the table beside scipy."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from ahf_cli.cli import main
from ahf_cli.config.load import load as read
from ahf_cli.errors import InputError
from ahf_cli.optim.operators import gauss_newton
from ahf_cli.tasks.data import load
from ahf_cli.tasks.datasets import DATA_SETS, training_size
from ahf_cli.tasks.fits import STEP, TIMES, Fit, lanczos, predator_prey, rosenbrock
from ahf_cli.training.evaluate import evaluate
from benchmarks import fits

ALL = {"rosenbrock": rosenbrock, "lanczos": lanczos, "predator_prey": predator_prey}
EACH = pytest.mark.parametrize(("name", "fit"), ALL.items())


def test_rosenbrock_and_lanczos_have_their_published_values() -> None:
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    assert float(rosenbrock.residuals(start).square().sum()) == pytest.approx(24.2, rel=1e-12)
    known = torch.tensor(lanczos.known, dtype=torch.float64)
    values = lanczos.predict(known)
    # The first and the last line of NIST's file Lanczos1.dat.
    assert float(values[0]) == pytest.approx(2.5134, rel=1e-12)
    by_hand = 0.0951 * math.exp(-1.15) + 0.8607 * math.exp(-3.45) + 1.5576 * math.exp(-5.75)
    assert len(values) == 24 and float(values[-1]) == pytest.approx(by_hand, rel=1e-12)


def test_predators_and_prey_follow_their_equations() -> None:
    a, b, c, d = predator_prey.known
    times = 2 * STEP * np.arange(1, TIMES + 1)
    found = solve_ivp(
        lambda t, z: [z[0] * (a - b * z[1]), z[1] * (d * z[0] - c)], (0, times[-1]), [1, 1],
        t_eval=times, rtol=1e-10, atol=1e-12,
    )  # fmt: skip
    own = predator_prey.predict(torch.tensor(predator_prey.known, dtype=torch.float64))
    np.testing.assert_allclose(own.numpy().reshape(-1, 2), found.y.T, rtol=2e-3)
    noise = predator_prey.data - own
    assert 0.03 < float(noise.std()) < 0.07


@EACH
def test_the_loss_of_the_task_is_half_the_square_of_the_residuals(name: str, fit: Fit) -> None:
    task = fits.task_of(name)
    theta = task.initial(0)
    assert theta.dtype == torch.float64 and theta.tolist() == list(fit.start)
    assert DATA_SETS[name].training == len(fit.data) == training_size(name, "paper") == task.batch_size
    rho = fit.residuals(theta)
    objective = task.batch([0], 1, 0)
    assert float(objective.value(theta[None])) == pytest.approx(0.5 * float(rho.square().sum()), rel=1e-12)
    found = evaluate(task, theta[None], task.split.test)
    assert float(found["distance"]) == pytest.approx(math.dist(fit.start, fit.known))
    paper = load(None, "paper", None, DATA_SETS[name])
    assert paper.validation is not None and torch.equal(paper.validation.images, paper.test.images)
    assert torch.equal(paper.train.images, paper.test.images)


@EACH
def test_derivatives_are_those_of_finite_differences(name: str, fit: Fit) -> None:
    task = fits.task_of(name)
    theta, objective = task.initial(1), task.batch([0], 1, 0)
    order = objective.inputs[:, 0].long()
    central = [
        (fit.residuals(theta + e) - fit.residuals(theta - e)) / 2e-6
        for e in 1e-6 * torch.eye(len(theta), dtype=torch.float64)
    ]
    dense = torch.stack(central, dim=1)[order]
    jacobian = objective.jacobian(theta[None], 0)
    torch.testing.assert_close(jacobian, dense, rtol=1e-6, atol=1e-7)
    at = objective.evaluate(theta[None])
    v = torch.ones_like(theta)[None]
    torch.testing.assert_close(gauss_newton(at)(v)[0], jacobian.T @ (jacobian @ v[0]))
    at = objective.evaluate(torch.tensor(fit.known, dtype=torch.float64)[None])
    assert bool(torch.isfinite(at.hvp(v)).all())  # also where the distance is 0


@EACH
def test_other_seeds_start_near_the_published_start(name: str, fit: Fit) -> None:
    starts = [fits.task_of(name).initial(seed) for seed in (1, 2)]
    assert not torch.equal(*starts)
    assert all(float((s / torch.tensor(fit.start) - 1).abs().max()) < 0.4 for s in starts)


FIT = ["-o", "task.data=rosenbrock", "-o", "task.model=rosenbrock", "-o", "task.loss=least_squares"]
FIT += ["-o", "task.batch_size=2", "-o", "task.dtype=float64", "-o", "train.eval_every=10"]


def test_a_fit_trains_on_the_command_line(tmp_path: Path) -> None:
    assert main(["train", "lm", *FIT, "-o", "train.steps=30", "--results", str(tmp_path), "-q"]) == 0
    (file,) = tmp_path.rglob("result.json")
    assert json.loads(file.read_text())["test_distance"] < 1e-12


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("task.model=lanczos", "task.model: must be rosenbrock for task.data rosenbrock, got 'lanczos'"),
        ("task.data=poisson2d_sin", "task.model: must be no fit, as rosenbrock is, for task.data poisson2d"),
        ("task.subset=2", "task.subset: must be null for a fit, got 2"),
        ("task.loss=squared_error", "must be least_squares for task.data rosenbrock, got 'squared_error'"),
    ],
)  # fmt: skip
def test_a_wrong_configuration_of_a_fit_gets_one_line(change: str, line: str) -> None:
    with pytest.raises(InputError, match=line):
        read("quick", None, [*FIT[1::2], change])


def assert_agree(found: list[fits.Row], kept: list[fits.Row], factor: float) -> None:
    """Norms below 1e-12 are rounding, and the counts of evaluations lie within a factor of each other."""
    assert [row["method"] for row in kept] == [row["method"] for row in found]
    for old, new in zip(kept, found, strict=True):
        assert new["residual_norm"] == pytest.approx(old["residual_norm"], rel=0.1, abs=1e-12), old
        assert old["losses"] / factor <= new["losses"] <= factor * old["losses"], (old, new)


def test_some_kept_numbers_are_those_of_a_run() -> None:
    rows = json.loads(fits.NUMBERS.read_text())["rows"]
    kept = {row["method"]: row for row in rows if row["fit"] == "rosenbrock"}
    found = [fits.by_recipe("rosenbrock", "lm"), *(fits.by_scipy("rosenbrock", m) for m in ("lm", "trf"))]
    assert_agree(found, [kept[row["method"]] for row in found], 1.2)


@pytest.mark.long
@pytest.mark.parametrize("name", fits.FITS)
def test_all_kept_numbers_are_those_of_a_run(name: str) -> None:
    kept = [row for row in json.loads(fits.NUMBERS.read_text())["rows"] if row["fit"] == name]
    assert len(kept) == 8
    # In steps of CG the last bit of the start moves evaluations threefold, and one norm by 5 per cent.
    assert_agree(fits.rows(name), kept, 4.0)

"""`python -m benchmarks.fits`: small fits by recipes of ahf and by scipy, from the same start, in float64."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import least_squares, minimize

from ahf_cli.config.load import load as read
from ahf_cli.optim import compose_trial
from ahf_cli.recipes.recipe import single_run
from ahf_cli.tasks.data import load
from ahf_cli.tasks.datasets import DATA_SETS
from ahf_cli.tasks.task import GRADIENT_STREAM, Task
from ahf_cli.training.environment import version
from benchmarks import record

NUMBERS = Path(__file__).resolve().parents[1] / "results" / "reference" / "fits.json"
FITS = ("rosenbrock", "lanczos", "predator_prey")
RECIPES = ("lm", "lm_geodesic", "hf_martens", "hf_undecayed", "hf_stable")
UNDECAYED = ("hf_undecayed", {"regularization": "none"})
"""`hf_martens` without its decay of the weights, which moves the minimum"""
STEPS, PATIENCE = 300, 20
"""most steps of a recipe, and steps without a fall of the loss after which it ends"""
Row = dict[str, Any]


def task_of(name: str) -> Task:
    """Return the task of a fit, all residuals in one batch."""
    data = DATA_SETS[name]
    return Task.on(load(None, "full", None, data), name, data.training, "cpu", torch.float64, "least_squares")


def by_recipe(name: str, recipe: str) -> Row:
    """Run a recipe with its default hyperparameters; counts are those up to the last fall of the loss."""
    task, known = task_of(name), read("quick").recipe
    found = known("hf_martens").derive(*UNDECAYED) if recipe == UNDECAYED[0] else known(recipe)
    optimizer = compose_trial(found.structure, STEPS)
    values = {k: torch.tensor([v], dtype=torch.float64) for k, v in single_run(found).items()}
    state, objective = optimizer.init(task.initial(0)[None], values), task.batch([0], GRADIENT_STREAM, 0)
    best, counts = float(objective.value(state.parameters)), np.zeros(3, dtype=int)
    kept, last = counts.copy(), 0
    for step in range(1, STEPS + 1):
        state, info = optimizer.step(state, objective, objective if optimizer.independent_batch else None)
        counts += [info.losses + 1, int(info.gradients), int(info.products)]
        loss = float(objective.value(state.parameters))  # a look from outside, counted nowhere
        if loss < best:
            best, kept, last = loss, counts.copy(), step
        if step - last >= PATIENCE:
            break
    if found.structure.squares:  # its products stand for a factorization
        kept[2] = 0
    return _row(name, recipe, 2 * best, last, kept.tolist())


def by_scipy(name: str, method: str) -> Row:
    """Run scipy with exact derivatives and tolerances of rounding."""
    task = task_of(name)
    objective, start = task.batch([0], GRADIENT_STREAM, 0), task.initial(0).numpy()

    def at(x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.asarray(x, dtype=np.float64))[None]

    if method != "trust-ncg":
        tolerances = dict.fromkeys(("xtol", "ftol", "gtol"), 1e-15)
        found = least_squares(
            lambda x: objective.residuals(at(x))[0].numpy(), start,
            lambda x: objective.jacobian(at(x), 0).numpy(), method=method, max_nfev=STEPS, **tolerances,
        )  # fmt: skip
        return _row(name, f"scipy {method}", 2 * found.cost, found.njev, [found.nfev, found.njev, 0])
    h: Callable[..., Any] = lambda theta: objective.loss.value(  # noqa: E731
        objective._outputs(objective.layout.split(theta[None])), objective.targets
    )[0]
    found = minimize(
        lambda x: float(objective.value(at(x))), start, method=method,
        jac=lambda x: objective.evaluate(at(x)).gradient[0].numpy(),
        hessp=lambda x, p: torch.func.jvp(torch.func.grad(h), (at(x)[0],), (at(p)[0],))[1].numpy(),
        options={"gtol": 1e-14, "maxiter": STEPS},
    )  # fmt: skip
    return _row(name, f"scipy {method}", 2 * found.fun, found.nit, [found.nfev, found.njev, found.nhev])


def _row(name: str, method: str, squares: float, steps: int, counts: list[int]) -> Row:
    losses, gradients, products = map(int, counts)
    return {
        "fit": name, "method": method, "residual_norm": float(np.sqrt(squares)), "steps": int(steps),
        "losses": losses, "derivatives": gradients, "products": products,
    }  # fmt: skip


def rows(name: str) -> list[Row]:
    """Return one row a method."""
    own = [by_recipe(name, recipe) for recipe in RECIPES]
    return own + [by_scipy(name, method) for method in ("lm", "trf", "trust-ncg")]


def main() -> int:
    """Run all fits, and write their numbers."""
    torch.set_num_threads(1)
    stamp = {**record.stamp(False, 0.0), "load_before": None}
    stamp["versions"] |= {"scipy": version("scipy")}
    record.write(NUMBERS, {**stamp, "rows": [row for name in FITS for row in rows(name)]})
    for row in json.loads(NUMBERS.read_text())["rows"]:
        sys.stdout.write(f"{json.dumps(row)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

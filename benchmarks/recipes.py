"""Whole steps of every recipe with explicit layers and by automatic differentiation, with their memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ahf_cli.optim import Optimizer, State, StepInfo, compose
from ahf_cli.optim.foreign import Foreign
from ahf_cli.recipes.builtin import RECIPES, find_recipe
from benchmarks import problems
from benchmarks.timing import Bench, interleave, spread
from benchmarks.trials import peak_memory

ITERATIONS = 15
"""CG iterations of a step; `hf_stable` and `adaptive_hf_stable` take their own maximum of 10."""
QUICK = ("hf", "hf_stable", "adam")
STEPS = 3
"""Steps until the peak of memory is read."""
Step = Callable[[], tuple[State, StepInfo]]


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Time a step of each recipe in turn, then read its peak memory in a process of its own."""
    names = QUICK if bench.quick else recipes_timed()
    steps = {(name, explicit): step for name in names for explicit, step in _steps(bench, name).items()}
    iterations = {name: _same(name, steps[name, True], steps[name, False]) for name in names}
    watches = {f"{name} {explicit}": bench.stopwatch(step) for (name, explicit), step in steps.items()}
    samples = {name: 1e3 * np.asarray(ms) for name, ms in interleave(watches, bench.budget(60)).items()}
    rows = []
    for name in names:
        explicit, automatic = samples[f"{name} True"], samples[f"{name} False"]
        rows.append(
            {
                "recipe": name, "iterations": iterations[name],
                "explicit": spread(explicit), "automatic": spread(automatic),
                "ratio": spread(automatic / explicit),
                "explicit_mb": _peak(bench, name, True), "automatic_mb": _peak(bench, name, False),
            }
        )  # fmt: skip
    return rows


def recipes_timed() -> tuple[str, ...]:
    """Return the recipes that train a classifier, and whose step leaves the state before it as it was."""
    return tuple(
        name
        for name, recipe in RECIPES.items()
        if not recipe.structure.squares and not isinstance(compose(recipe.structure), Foreign)
    )


def _steps(bench: Bench, name: str, ways: Sequence[bool] = (True, False)) -> dict[bool, Step]:
    """Make a step by explicit layers (True) and one by automatic differentiation, from the same state."""
    optimizer = compose(find_recipe(name).structure)
    if isinstance(optimizer, Optimizer):
        optimizer = problems.endless(optimizer, ITERATIONS)
    first = {e: problems.objective(bench.device, explicit=e) for e in ways}
    second = {e: problems.objective(bench.device, seed=1, explicit=e) for e in ways}
    state = problems.warm_state(optimizer, name, first[ways[0]], second[ways[0]])
    return {e: problems.step(optimizer, state, first[e], second[e]) for e in ways}


def _same(name: str, explicit: Step, automatic: Step) -> int:
    """Return the CG iterations of both steps; raises RuntimeError if the steps differ."""
    one, two = (step()[1] for step in (explicit, automatic))
    # The tolerance is wide: CG amplifies rounding in float32.
    # If a step raises the loss, the losses after it differ by up to 10 % on some processors.
    # So both need only raise it.
    counts = [int(info.cg_iterations.item()) for info in (one, two)]
    near = torch.allclose(one.loss, two.loss, rtol=1e-5)
    risen = bool(one.loss_after > one.loss) and bool(two.loss_after > two.loss)
    near = near and (risen or torch.allclose(one.loss_after, two.loss_after, rtol=1e-2))
    if counts[0] != counts[1] or not near:
        losses = one.loss_after.item(), two.loss_after.item()
        raise RuntimeError(f"{name}: the steps differ; CG iterations {counts}, losses {losses}")
    return counts[0]


def _peak(bench: Bench, name: str, explicit: bool) -> dict[str, float]:
    """Return the peak memory in MB of a process that takes some steps, and the peak at its start."""
    job = {"device": bench.device.type, "recipe": name, "explicit": explicit}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.recipes", json.dumps(job)],
        capture_output=True, text=True, check=False, env=dict(os.environ),
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the process for the memory of {name} failed: {done.stderr.strip()}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _memory(job: dict[str, Any]) -> dict[str, float]:
    """Take steps and return the peaks of this process."""
    bench = Bench(torch.device(job["device"]))
    start = peak_memory(bench)
    (step,) = _steps(bench, job["recipe"], [job["explicit"]]).values()
    for _ in range(STEPS):
        step()
    return {"start": start, "peak": peak_memory(bench)}


if __name__ == "__main__":
    print(json.dumps(_memory(json.loads(sys.argv[1]))))

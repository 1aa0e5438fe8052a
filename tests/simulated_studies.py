"""Studies of simulated trials with the files of a whole search."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS, Range
from ahf_cli.study.store import Study
from ahf_cli.study.trial_folder import TrialFolders
from ahf_cli.tasks.metrics import TEN_CLASSES
from ahf_cli.training.records import CurveRow, StepRow, TrialResult
from tests.studies import measured

NAN = math.nan
ENDS = {"hf": 0.75, "adaptive_hf": 2.2, "hf_published": 1.3, "adaptive_hf_published": 0.65}
"""median of the final training loss of each recipe"""

LN_10 = math.log(10)


def identity(recipes: list[str], design: str = "fair") -> dict[str, object]:
    """Return the part of a configuration's identity that `compare` reads."""
    structures = {name: {"structure": vars(RECIPES[name].structure), "fixed": {}} for name in recipes}
    spaces = {name: {k: vars(r) for k, r in space(name).items()} for name in recipes}
    search = {"design": design, "sampler": "random", "objective": "validation_loss"}
    task = {"data": "fashion_mnist", "split": "paper", "model": "lenet", "batch_size": 128, "subset": None}
    return {
        "seed": 0, "task": task, "train": {"steps": 1430, "eval_every": 10, "eval_subset": 10000},
        "search": search, "recipes": structures, "spaces": spaces,
    }  # fmt: skip


def space(recipe: str) -> dict[str, Range]:
    """Return the ranges of a recipe in the paper's Appendix B."""
    ranges = {name: HYPERPARAMETERS[name].search for name in RECIPES[recipe].free}
    return {name: found for name, found in ranges.items() if found}


def draw(rng: np.random.Generator, found: Range) -> float:
    low, high = (math.log(v) if found.log else v for v in (found.low, found.high))
    value = rng.uniform(low, high)
    return math.exp(value) if found.log else value


def trial(
    rng: np.random.Generator,
    recipe: str,
    slot: int,
    points: int,
    every: int,
    params: Mapping[str, float],
    seed: int = 0,
) -> tuple[TrialResult, list[CurveRow], list[StepRow]]:
    """Simulate one trial; its final loss depends on the recipe and on the hyperparameters."""
    steps = (points - 1) * every
    quality = abs(math.log10(params.get("lr", 0.1)) + 1) if "lr" in params else params["damping"] / 20
    end = ENDS[recipe] * math.exp(0.35 * rng.normal() + 0.4 * (quality - 0.7))
    end = min(end, LN_10)
    diverges = seed == 0 and rng.random() < (0.2 if recipe == "hf" else 0.02)
    last = steps if not diverges else int(rng.integers(steps // 4, steps))
    rate = rng.uniform(3, 8)
    curve = []
    for s in range(0, last + 1, every):
        noise = 1 + 0.02 * rng.normal()
        loss = end + (2.3 - end) * math.exp(-rate * s / steps) * noise
        accuracy = min(0.95, max(0.1, 0.1 + 0.8 * (2.3 - loss) / 2.05))
        curve.append(
            CurveRow(s, s / 390,
                     measured(loss, accuracy, loss * 1.01, accuracy, loss * 1.02, accuracy - 0.005),
                     s * 18, s * 2, 0.3 * s + 0.01 * s * rng.random())
        )  # fmt: skip
    grows = recipe.endswith("published") and params.get("lr", 1) < 0.134
    rows = []
    for t in range(1, last + 1):
        damping = min(1e38, params["damping"] * (1.5**t if grows else 0.999**t))
        norm = 2 / (1 + damping) * math.exp(0.2 * rng.normal())
        rows.append(
            StepRow(t, 2, 1.9, norm, norm * 90, norm * 2.5, norm * 0.1, params.get("lr", 1e-5), 1e-5, damping,
                    0.1 if grows else 0.8 + 0.2 * rng.normal(), -1, int(rng.integers(3, 40)),
                    rng.choice(["progress", "negative_curvature"]), 1.0 + rng.random(), -30 * rng.random())
        )  # fmt: skip
    final = curve[-1].measured
    lost = NAN if diverges else 1.0
    result = TrialResult(
        recipe, slot, "diverged" if diverges else "ok", last, steps,
        LN_10 if diverges else final["validation_loss"], "validation_loss", dict(params), seed,
        {name: lost * final[name] for name in TEN_CLASSES.result_columns}, curve[-1].seconds,
        stalled=not diverges and final["train_loss"] > 0.95 * 2.3, still_from=0,
    )  # fmt: skip
    return result, curve, rows


def simulate_study(
    results: Path, name: str, trials: int = 70, points: int = 144, reruns: int = 10, every: int = 10,
    recipes: tuple[str, ...] = tuple(ENDS), commit: str = "a" * 40, design: str = "fair", seed: int = 0,
) -> Study:  # fmt: skip
    """Write a study of simulated trials, and re-runs of the best trial of each recipe."""
    rng = np.random.default_rng(seed)
    manifest = {
        "command": f"ahf search --study {name}", "commit": commit, "dirty": False,
        "versions": {"python": "3.11.7", "torch": "2.14.1"}, "device": "made up", "cores": 2, "threads": 1,
        "seeds": {"training": 0, "sampler": 0}, "data": {"train-images-idx3-ubyte.gz": "0" * 64},
        "plan": dict.fromkeys(recipes, trials), "rerun_plan": dict.fromkeys(recipes, reruns),
    }  # fmt: skip
    with Study(results, name) as study:
        study.open_for_writing(f"study: {name}\n", identity(list(recipes), design), manifest)
        again = TrialFolders(study.folder / "reruns")
        for recipe in recipes:
            best: TrialResult | None = None
            for slot in range(trials):
                params = {k: draw(rng, r) for k, r in space(recipe).items()}
                made = trial(rng, recipe, slot, points, every, params)
                study.trial(recipe, slot).finish(*made)
                best = made[0] if best is None or made[0].value < best.value else best
            for replicate in range(reruns):
                assert best is not None
                made = trial(rng, recipe, replicate, points, every, best.params, seed=1000 + replicate)
                result = replace(made[0], extra={"search_slot": float(best.slot)})
                again.trial(recipe, replicate).finish(result, *made[1:])
    return study

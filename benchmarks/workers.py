"""Trials an hour of a real search by number of workers, and the estimate for the paper's preset."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from typing import Any

import torch

from benchmarks.timing import Bench, spread

STEPS, TRIALS, ROUNDS = 100, 8, 2
RECIPE = "{base: hf, lr: 0.1, damping: 10}"
"""Equal trials, as many as let the start of the processes and the last trials weigh little."""
COUNTS = (1, 2)


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Run the same short search with one worker and with two, in turn; then estimate the paper's."""
    if bench.device.type != "cpu" or not importlib.util.find_spec("optuna") or torch.get_num_threads() > 1:
        return []  # a GPU has one worker, a bare machine no search, and a worker one thread
    seconds: dict[int, list[float]] = {count: [] for count in COUNTS}
    trials, steps, rounds = (2, 3, 1) if bench.quick else (TRIALS, STEPS, ROUNDS)
    for _ in range(rounds):
        for count in COUNTS:
            seconds[count].append(_search(count, trials, steps))
    rows: list[dict[str, Any]] = [
        {
            "workers": count,
            "trials": trials,
            "steps": steps,
            "seconds": spread(values),
            "trials_per_hour": spread([3600 * trials / s for s in values]),
            "ratio": spread([one / s for one, s in zip(seconds[1], values, strict=True)]),
        }
        for count, values in seconds.items()
    ]
    if not bench.quick:
        rows.append({"estimate": _ahf("search", "--dry-run")})
    return rows


def _search(workers: int, trials: int, steps: int) -> float:
    """Return the seconds of a search of equal trials, from the start of the command to its end."""
    with tempfile.TemporaryDirectory() as results:
        found = _ahf(
            "search", "--recipe", "same", "-o", f"recipes.same={RECIPE}", "--trials", str(trials),
            "-o", f"train.steps={steps}", "-o", f"train.eval_every={steps}", "-o", f"run.workers={workers}",
            "--results", results, "--study", "workers",
        )  # fmt: skip
    return float(found["seconds"])


def _ahf(*arguments: str) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "AHF_STORAGE"}
    done = subprocess.run(
        [sys.executable, "-m", "ahf_cli", *arguments, "--json", "-q", "--device", "cpu"],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"ahf {' '.join(arguments)} failed: {done.stderr.strip()}")
    content: dict[str, Any] = json.loads(done.stdout)
    return content

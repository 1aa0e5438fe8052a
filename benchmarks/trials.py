"""K trials side by side."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import costs, problems
from benchmarks.timing import Bench, Spread, times

ITERATIONS = 5


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Time gradient, products, CG and a step of LeNet with K trials, all K in turn."""
    counts = [1, 4] if bench.quick else [1, 4, 16, 70]
    if bench.device.type == "cpu":
        counts = [count for count in counts if count <= 16]
    cases: dict[int, costs.Actions] = {}
    memory: dict[int, float] = {}
    start = peak_memory(bench)
    # In ascending order: the peak of a process never falls.
    for count in counts:
        cases[count], memory[count] = _prepare(bench, count)
    named = {f"{count} {name}": action for count, case in cases.items() for name, action in case.items()}
    spreads = times(bench, named, bench.budget(40))
    rows = []
    for count, case in cases.items():
        ms = costs.by_iteration({name: spreads[f"{count} {name}"] for name in case}, ITERATIONS)
        rows.append(
            {
                "trials": count, "iterations": ITERATIONS, "ms": ms,
                "trial_steps_per_second": _rate(count, ms["step"]),
                "peak_mb": memory[count], "start_mb": start,
            }
        )  # fmt: skip
    return rows


def _prepare(bench: Bench, count: int) -> tuple[costs.Actions, float]:
    """Return the actions to time with K trials, and the peak memory of a step in MB."""
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    h, other = problems.objective(bench.device), problems.objective(bench.device, seed=1)
    optimizer = problems.fixed_length("hf", "hessian", ITERATIONS)
    state = problems.warm_state(optimizer, "hf", h, other, count)
    peak = peak_memory(bench)
    step: costs.Actions = {"step": lambda: optimizer.step(state, h, other)}
    return costs.actions(h, problems.weights(h, count), ITERATIONS) | step, peak


def peak_memory(bench: Bench) -> float:
    """Return the peak in MB: of the device's allocator, or of this process."""
    if bench.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")
    if status.exists():  # Linux hands `ru_maxrss` on from the parent process
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _rate(count: int, step: Spread) -> Spread:
    """Return the steps of all trials a second, from the milliseconds of a step."""
    flipped = {"median": "median", "low": "high", "high": "low"}
    return {name: 1e3 * count / step[of] for name, of in flipped.items()} | {"repeats": step["repeats"]}

"""K trials side by side."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from typing import Any

import torch

from ahf_cli.optim import HessianOperator, conjugate_gradient
from benchmarks import problems
from benchmarks.timing import Bench, Spread, times

Actions = dict[str, Callable[[], object]]


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Time gradient, products, CG and a step of LeNet with K trials, all K in turn."""
    counts = [1, 4] if bench.quick else [1, 4, 16, 70]
    if bench.device.type == "cpu":
        counts = [count for count in counts if count <= 16]
    iterations = 3 if bench.quick else 10
    cases, memory, start = {}, {}, peak_memory(bench)
    # In ascending order and before all else: the peak of a process never falls.
    for count in counts:
        cases[count], memory[count] = _prepare(bench, count, iterations)
    spreads = times(
        bench,
        {f"{count} {name}": action for count, case in cases.items() for name, action in case.items()},
        bench.budget(50),
    )
    rows = []
    for count, case in cases.items():
        ms = {name: spreads[f"{count} {name}"] for name in case}
        ms["cg_iteration"] = {k: v if k == "repeats" else v / iterations for k, v in ms.pop("cg").items()}
        rows.append({**_row(count, iterations, ms), "peak_mb": memory[count], "start_mb": start})
    return rows


def _prepare(bench: Bench, count: int, iterations: int) -> tuple[Actions, float]:
    """Return what to time with K trials, and the peak memory of a step in MB."""
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    h, other = problems.objective(bench.device), problems.objective(bench.device, seed=1)
    theta = problems.weights(h, count)
    optimizer = problems.fixed_length("hf", "hessian", iterations)
    state = problems.warm_state(optimizer, "hf", h, other, count)
    peak = peak_memory(bench)
    kept = h.evaluate(theta)
    HessianOperator(kept).prepare()
    vectors, start = kept.gradient.clone(), torch.zeros_like(theta)
    damping = torch.full((count,), problems.DAMPING, device=bench.device)

    def cg() -> None:
        conjugate_gradient(
            kept.hessian_product, damping, vectors, start, problems.EndlessRules(), iterations,
            check_every=5 if bench.device.type == "cuda" else 1,
        )  # fmt: skip

    return {
        "gradient": lambda: h.evaluate(theta).gradient,
        "hessian": lambda: kept.hessian_product(vectors),
        "ggn": lambda: kept.gauss_newton_product(vectors),
        "cg": cg,
        "step": lambda: optimizer.step(state, h, other),
    }, peak


def peak_memory(bench: Bench) -> float:
    """Return the peak in MB: of the device's allocator, or of this process."""
    if bench.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _row(count: int, iterations: int, ms: dict[str, Spread]) -> dict[str, Any]:
    step = ms["step"]
    rate = {
        "median": 1e3 * count / step["median"], "low": 1e3 * count / step["high"],
        "high": 1e3 * count / step["low"], "repeats": step["repeats"],
    }  # fmt: skip
    return {
        "trials": count,
        "iterations": iterations,
        "ms": ms,
        "trial_steps_per_second": rate,
    }

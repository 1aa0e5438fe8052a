"""Growth of the costs with the batch and with the number of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ahf_cli.tasks.models import LeNet
from benchmarks import costs, problems
from benchmarks.timing import Bench, times

ITERATIONS = 5
Case = tuple[str, Callable[[], nn.Module], int]
CASES: tuple[Case, ...] = (
    ("LeNet", LeNet, 32),
    ("LeNet", LeNet, 128),
    ("LeNet", LeNet, 512),
    ("MLP 784–800–400–10", lambda: problems.mlp(784, 800, 400, 10), 128),
    ("MLP 784–2800–2800–10", lambda: problems.mlp(784, 2800, 2800, 10), 128),
)


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Time gradient, products and CG for LeNet with three batch sizes, and for two larger networks."""
    rows: list[dict[str, Any]] = []
    actions: costs.Actions = {}
    for n, (name, make, size) in enumerate(CASES[:3] if bench.quick else CASES):
        h = problems.objective(bench.device, make(), size)
        rows.append({"model": name, "parameters": h.layout.size, "batch": size})
        theta = problems.weights(h)
        case = {"plain": problems.plain_gradient(h, theta), **costs.actions(h, theta, ITERATIONS)}
        actions |= {f"{n} {what}": action for what, action in case.items()}
    spreads = times(bench, actions, bench.budget(30))
    for n, row in enumerate(rows):
        ms = {key.split()[1]: spreads[key] for key in actions if key.startswith(f"{n} ")}
        row["ms"] = costs.by_iteration(ms, ITERATIONS)
    return rows

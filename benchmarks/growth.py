"""How cost grows with the batch and with the number of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ahf_cli.optim import HessianOperator, conjugate_gradient
from ahf_cli.tasks.lenet import LeNet
from benchmarks import problems
from benchmarks.timing import Bench, times

ITERATIONS = 5


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Time gradient, products and CG for LeNet with three batch sizes, and for two larger networks."""
    cases: list[tuple[str, Callable[[], nn.Module], int]] = [
        *(("LeNet", LeNet, size) for size in (32, 128, 512)),
        ("MLP 784–800–400–10", lambda: problems.mlp(784, 800, 400, 10), 128),
        ("MLP 784–2800–2800–10", lambda: problems.mlp(784, 2800, 2800, 10), 128),
    ]
    if bench.quick:
        cases = [case for case in cases if case[0] == "LeNet"]
    rows: list[dict[str, Any]] = []
    actions: dict[str, Callable[[], object]] = {}
    for n, (name, make, size) in enumerate(cases):
        parameters, case = _prepare(bench, make(), size)
        rows.append({"model": name, "parameters": parameters, "batch": size})
        actions |= {f"{n} {what}": action for what, action in case.items()}
    spreads = times(bench, actions, bench.budget(45))
    for n, row in enumerate(rows):
        row["ms"] = ms = {key.split()[1]: spreads[key] for key in actions if key.startswith(f"{n} ")}
        ms["cg_iteration"] = {k: v if k == "repeats" else v / ITERATIONS for k, v in ms.pop("cg").items()}
    return rows


def _prepare(bench: Bench, model: nn.Module, size: int) -> tuple[int, dict[str, Callable[[], object]]]:
    h = problems.objective(bench.device, model, size)
    theta = problems.weights(h)
    kept = h.evaluate(theta)
    HessianOperator(kept).prepare()
    vector, start = kept.gradient.clone(), torch.zeros_like(theta)
    damping = torch.full((1,), problems.DAMPING, device=bench.device)

    def cg() -> None:
        conjugate_gradient(
            kept.hessian_product, damping, vector, start, problems.EndlessRules(), ITERATIONS,
            check_every=ITERATIONS if bench.device.type == "cuda" else 1,
        )  # fmt: skip

    return h.layout.size, {
        "gradient": lambda: h.evaluate(theta).gradient,
        "hessian": lambda: kept.hessian_product(vector),
        "ggn": lambda: kept.gauss_newton_product(vector),
        "cg": cg,
    }

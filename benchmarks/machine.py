"""The arithmetic limit of this machine, and where the time of a product goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ahf_cli.optim import gauss_newton, hessian
from benchmarks import problems
from benchmarks.timing import Bench, interleave, spread

SIZE = 1024
TOP = 10
STEP_ITERATIONS = 15
Actions = dict[str, Callable[[], object]]


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Measure the rate of matrix products beside LeNet's arithmetic, and profile products and a step."""
    actions, step = _lenet(bench), _step(bench)
    left, right = torch.rand(2, SIZE, SIZE, device=bench.device)
    # A GPU is done with one such product before the next is launched: give it several at a time.
    count = 20 if bench.device.type == "cuda" else 1

    def matrix_products() -> None:
        for _ in range(count):
            torch.mm(left, right)

    watches = {"matrix products": bench.stopwatch(matrix_products)}
    watches |= {name: bench.stopwatch(action) for name, action in actions.items()}
    samples = interleave(watches, bench.budget(10, rounds=60))
    gflops = [2e-9 * SIZE**3 * count / seconds for seconds in samples.pop("matrix products")]
    arithmetic = [
        {"quantity": name, "mflop": _flops(actions[name]) / 1e6, "ms": spread([1e3 * t for t in seconds])}
        for name, seconds in samples.items()
    ]
    profiled = {name: actions[name] for name in ("Hessian product", "GGN product")}
    if not bench.quick:
        profiled[f"hf step with {STEP_ITERATIONS} CG iterations"] = step
    return [
        {
            "gflops": spread(gflops),
            "arithmetic": arithmetic,
            "profile": {name: _operators(bench, action) for name, action in profiled.items()},
        }
    ]


def _lenet(bench: Bench) -> Actions:
    h = problems.objective(bench.device)
    theta = problems.weights(h)
    kept = h.evaluate(theta)
    hessian_product, ggn_product = kept.operator(hessian), kept.operator(gauss_newton)
    vector = kept.gradient.clone()
    return {
        "forward pass": lambda: h.value(theta),
        "gradient": lambda: h.evaluate(theta).gradient,
        "Hessian product": lambda: hessian_product(vector),
        "GGN product": lambda: ggn_product(vector),
    }


def _step(bench: Bench) -> Callable[[], object]:
    h, other = problems.objective(bench.device), problems.objective(bench.device, seed=1)
    optimizer = problems.fixed_length("hf", "hessian", STEP_ITERATIONS)
    state = problems.warm_state(optimizer, "hf", h, other)
    return lambda: optimizer.step(state, h, other)


def _flops(action: Callable[[], object]) -> int:
    """Count the floating-point operations of matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        action()
    total: int = counter.get_total_flops()
    return total


def _operators(bench: Bench, action: Callable[[], object]) -> list[dict[str, Any]]:
    """Return the operators that take most time, without what they call, and their share of all."""
    cuda = bench.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as run:
        for _ in range(1 if bench.quick else 10):
            action()
        bench.synchronize()
    totals = {
        event.key: float(event.self_device_time_total if cuda else event.self_cpu_time_total)
        for event in run.key_averages()
        if event.device_type.name == ("CUDA" if cuda else "CPU")
    }
    total = sum(totals.values())
    ranked = sorted(totals.items(), key=lambda item: -item[1])[:TOP]
    return [{"operator": name, "share": time / total} for name, time in ranked if total]

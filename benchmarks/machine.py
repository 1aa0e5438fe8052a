"""Dense arithmetic of LeNet's evaluations, and the time that it takes at the machine's full rate.

Automatic differentiation computes all positions of a convolution, and PyTorch counts its operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ahf_cli.optim import gauss_newton, hessian
from benchmarks import problems
from benchmarks.timing import Bench, interleave, spread

SIZE = 1024
Actions = dict[str, Callable[[], object]]


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Measure the rate of matrix products beside LeNet's evaluations, and count the operations of these."""
    actions, counted = _lenet(bench), _lenet(bench, explicit=False)
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
        {"quantity": name, "mflop": _flops(counted[name]) / 1e6, "ms": spread([1e3 * t for t in seconds])}
        for name, seconds in samples.items()
    ]
    return [{"gflops": spread(gflops), "arithmetic": arithmetic}]


def _lenet(bench: Bench, explicit: bool = True) -> Actions:
    h = problems.objective(bench.device, explicit=explicit)
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


def _flops(action: Callable[[], object]) -> int:
    """Count the floating-point operations of matrix products and convolutions."""
    action()  # operations of the set-up are not counted
    with FlopCounterMode(display=False) as counter:
        action()
    total: int = counter.get_total_flops()
    return total

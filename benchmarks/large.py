"""A step on a network of four million parameters: time and peak memory, beside PyTorchHessianFree.

Each run has a process of its own, since the peak of a process never falls.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ahf_cli.optim import HessianFree
from benchmarks import problems
from benchmarks.classes import PEER
from benchmarks.timing import Bench, spread
from benchmarks.trials import peak_memory

WIDTHS = (784, 1500, 1500, 400, 10)
ITERATIONS, STEPS = 20, 8
NAMES = ("HessianFree()", PEER)


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Run both optimizers in turn, and return the medians of their steps."""
    if torch.get_num_threads() > 1 or bench.device.type != "cpu":
        return []
    rounds = 1 if bench.quick else 5
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
    for _ in range(rounds):
        for name in NAMES:
            words = [sys.executable, "-m", "benchmarks.large", name]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            found[name].append(json.loads(done.stdout))
    return [
        {
            "optimizer": name, "parameters": runs[0]["parameters"],
            "seconds": spread(np.array([s for run in runs for s in run["seconds"]])),
            "vectors": spread(np.array([run["vectors"] for run in runs])),
            "loss": runs[0]["loss"],
        }
        for name, runs in found.items()
        if runs[0]["seconds"]
    ]  # fmt: skip


def run(name: str) -> dict[str, Any]:
    """Take a few steps; return their CPU seconds, and the peak memory in vectors of the parameters."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bench = Bench(torch.device("cpu"))
    model = problems.mlp(*WIDTHS)
    x, y = problems.batch(bench.device)

    def forward() -> tuple[Tensor, Tensor]:
        z = model(x)
        return F.cross_entropy(z, y), z

    parameters = list(model.parameters())
    size = sum(p.numel() for p in parameters)
    step = _step(name, parameters, forward)
    if step is None:
        return {"seconds": []}
    torch.autograd.grad(forward()[0], parameters)  # allocates the workspaces of the libraries
    start, seconds = peak_memory(bench), []
    for _ in range(STEPS):
        before = time.process_time()
        step()
        seconds.append(time.process_time() - before)
    vectors = (peak_memory(bench) - start) * 1e6 / (4 * size)
    loss = float(forward()[0].detach())
    # The first step also checks the closure.
    return {"parameters": size, "seconds": seconds[1:], "vectors": vectors, "loss": loss}


def _step(name: str, parameters: list[nn.Parameter], forward: Callable[..., Any]) -> Callable[[], Any] | None:
    if name != PEER:
        own = HessianFree(parameters, max_iterations=ITERATIONS)
        return lambda: own.step(forward)
    try:
        kind = importlib.import_module("hessianfree.optimizer").HessianFree
    except ModuleNotFoundError:
        return None
    peer = kind(parameters, cg_max_iter=ITERATIONS)

    def step() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            peer.step(forward=forward)

    return step


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1])))

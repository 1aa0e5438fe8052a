"""Whole-set evaluation by chunk size."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks import problems
from benchmarks.timing import Bench, times

IMAGES = 10_000
CHUNKS = (100, 250, 500, 1000, 2000, 5000, 10_000)


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Time the loss of LeNet on 10,000 images without a graph, in chunks of each size in turn."""
    parts = {size: [problems.objective(bench.device, size=size)] * (IMAGES // size) for size in CHUNKS}
    theta = problems.weights(parts[CHUNKS[0]][0])

    @torch.inference_mode()
    def evaluate(size: int) -> None:
        for part in parts[size]:
            part.value(theta)

    spreads = times(bench, {str(size): partial(evaluate, size) for size in CHUNKS}, bench.budget(20))
    return [{"chunk": size, "images": IMAGES, "ms": spreads[str(size)]} for size in CHUNKS]

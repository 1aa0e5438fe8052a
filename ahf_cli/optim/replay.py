"""A curvature product whose kernels a GPU repeats as one CUDA graph."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from ahf_cli.optim.operators import Operator

SWITCH = "AHF_CUDA_GRAPHS"
"""Environment variable; `yes` turns graphs on.  No GPU has run them, so they are no default."""
Capture = Callable[[Operator, Tensor], Callable[[], Tensor]]
"""(v ↦ B v, v) ↦ () ↦ B v at the numbers that v holds now."""


def replayed(operator: Operator, device: torch.device) -> Operator:
    """Return v ↦ B v, by a CUDA graph on a GPU if the switch is on."""
    wanted = device.type == "cuda" and os.environ.get(SWITCH, "").lower() in ("yes", "1")
    return Replayed(operator, cuda_graph) if wanted else operator


class Replayed:
    """v ↦ B v, captured at the second product and repeated from then on; each result lasts until the next.

    The whole product becomes one launch.  Stopping rules and kept iterates stay ordinary code.
    """

    def __init__(self, operator: Operator, capture: Capture):
        self.operator, self.capture = operator, capture
        self.products = 0

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return B v."""
        self.products += 1
        if self.products == 1:  # libraries allocate their workspace at the first use, outside the graph
            return self.operator(vectors)
        if self.products == 2:
            self.vectors = vectors.clone()
            self.replay = self.capture(self.operator, self.vectors)
        self.vectors.copy_(vectors)
        return self.replay()


def cuda_graph(operator: Operator, vectors: Tensor) -> Callable[[], Tensor]:
    """Capture B v as a CUDA graph."""
    graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # the default stream refuses a capture
    side.wait_stream(here)
    with torch.cuda.stream(side):
        # Not `torch.cuda.graph`, which waits for the device and empties the allocator's cache each time.
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            image = operator(vectors)
        finally:
            graph.capture_end()
    here.wait_stream(side)

    def replay() -> Tensor:
        graph.replay()
        return image

    return replay

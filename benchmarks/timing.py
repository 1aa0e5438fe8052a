"""Medians and quartiles of things that are measured in turn, so that noise of the machine hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from ahf_cli.training import interleave as turns
from ahf_cli.training.interleave import Budget

T = TypeVar("T")
Spread = dict[str, float]
"""median, low and high quartile, and the number of repeats."""


@dataclass(frozen=True)
class Bench:
    """Where and how thoroughly to measure."""

    device: torch.device
    quick: bool = False

    def budget(self, seconds: float, rounds: int = 40) -> Budget:
        """Return the budget of a table that takes so many seconds in a full run."""
        return Budget(5, 0.03 * seconds) if self.quick else Budget(rounds, seconds)

    def synchronize(self) -> None:
        """Wait until the device has finished its queue."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def stopwatch(self, action: Callable[[], object]) -> Callable[[], float]:
        """Make a function that runs the action and returns its seconds."""

        def timed() -> float:
            self.synchronize()
            before = time.perf_counter()
            action()
            self.synchronize()
            return time.perf_counter() - before

        return timed


def interleave(cases: Mapping[str, Callable[[], T]], budget: Budget) -> dict[str, list[T]]:
    """Run every case once a round, in changing order, and return their results by round."""
    samples = turns.interleave(cases, budget)
    assert samples is not None  # nothing stops it
    return samples


def times(bench: Bench, actions: Mapping[str, Callable[[], object]], budget: Budget) -> dict[str, Spread]:
    """Return the milliseconds of each action, measured in turn."""
    samples = interleave({name: bench.stopwatch(action) for name, action in actions.items()}, budget)
    return {name: spread(1e3 * np.asarray(values)) for name, values in samples.items()}


def spread(values: Sequence[float] | np.ndarray) -> Spread:
    """Return median, quartiles and number of some values."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high), "repeats": len(values)}

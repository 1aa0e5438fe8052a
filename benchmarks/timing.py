"""Medians and quartiles of things that are measured in turn, so that noise of the machine hits all alike."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

T = TypeVar("T")
Spread = dict[str, float]
"""median, low and high quartile, and the number of repeats."""


@dataclass(frozen=True)
class Budget:
    """How long to measure: so many rounds, or fewer where the time is spent, but never below `least`."""

    rounds: int
    seconds: float
    least: int = 3


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


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the garbage collector out of the measurements."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def interleave(cases: Mapping[str, Callable[[], T]], budget: Budget) -> dict[str, list[T]]:
    """Run every case once a round, and return their results by round.

    One round warms up and is dropped.  Each round has an order of its own, drawn from a fixed seed.  In a
    fixed cycle a case would always follow the same other case, with its caches and its heap.
    """
    names, order = list(cases), random.Random(0)
    samples: dict[str, list[T]] = {name: [] for name in names}
    with quiet():
        for case in cases.values():
            case()
        end = time.perf_counter() + budget.seconds
        for n in range(budget.rounds):
            if n >= budget.least and time.perf_counter() > end:
                break
            for name in order.sample(names, len(names)):
                samples[name].append(cases[name]())
            gc.collect()
    return samples


def times(bench: Bench, actions: Mapping[str, Callable[[], object]], budget: Budget) -> dict[str, Spread]:
    """Return the milliseconds of each action, measured in turn."""
    samples = interleave({name: bench.stopwatch(action) for name, action in actions.items()}, budget)
    return {name: spread(1e3 * np.asarray(values)) for name, values in samples.items()}


def spread(values: Sequence[float] | np.ndarray) -> Spread:
    """Return median, quartiles and number of some values."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high), "repeats": len(values)}

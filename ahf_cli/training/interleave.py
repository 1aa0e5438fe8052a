"""Measurements in turn: every case once a round, in one process."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
Clock = Callable[[], float]


@dataclass(frozen=True)
class Budget:
    """How long to measure: so many rounds, or fewer where the time is spent, but never below `least`."""

    rounds: int
    seconds: float
    least: int = 3


def interleave(
    cases: Mapping[str, Callable[[], T]],
    budget: Budget,
    clock: Clock = time.perf_counter,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, list[T]] | None:
    """Run every case once a round, and return their results by round; None where it was stopped.

    One round warms up and is dropped.  Each round has an order of its own, drawn from a fixed seed.  In a
    fixed cycle a case would always follow the same other case, with its caches and its heap.
    """
    names, order = list(cases), random.Random(0)
    samples: dict[str, list[T]] = {name: [] for name in names}
    with _without_collection():
        for case in cases.values():
            case()
        end = clock() + budget.seconds
        for n in range(budget.rounds):
            if should_stop():
                return None
            if n >= budget.least and clock() > end:
                break
            for name in order.sample(names, len(names)):
                samples[name].append(cases[name]())
            gc.collect()
    return samples


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keep the garbage collector out of the measurement."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()

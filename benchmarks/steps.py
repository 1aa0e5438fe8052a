"""Where the time of a step goes: products, gradients, losses, and the rest."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ahf_cli.optim import (
    CGResult,
    Evaluation,
    Linearization,
    ModelObjective,
    Operator,
    Optimizer,
    State,
)
from ahf_cli.optim.layer_statistics import Draw, FisherSample
from ahf_cli.optim.newton import LinearSolver, LinearSystem
from ahf_cli.optim.rows import Layout
from benchmarks import problems
from benchmarks.timing import Bench, interleave, spread

T = TypeVar("T")
CASES = (("hf", "hessian"), ("hf", "ggn"), ("adaptive_hf", "hessian"))
PARTS = ("product", "gradient", "set-up", "loss")


class Moment(Protocol):
    """A point in time."""

    def until(self, later: Any) -> float:
        """Return the seconds from this moment to a later one of the same kind."""
        ...


@dataclass(frozen=True)
class HostMoment:
    """A reading of the host's clock."""

    seconds: float = field(default_factory=time.perf_counter)

    def until(self, later: HostMoment) -> float:
        """Return the seconds between."""
        return later.seconds - self.seconds


class DeviceMoment:
    """A mark in the queue of a GPU; the host does not wait for it: a wait would change the time."""

    def __init__(self) -> None:
        self.event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.event.record()

    def until(self, later: DeviceMoment) -> float:
        """Return the seconds between; both must have passed."""
        return float(self.event.elapsed_time(later.event)) / 1e3


@dataclass
class Ledger:
    """The spans of time that the parts of a step took."""

    now: Callable[[], Moment]
    spans: list[tuple[str, Moment, Moment]] = field(default_factory=list)

    def call(self, part: str, action: Callable[[], T]) -> T:
        """Run an action and book its time."""
        before = self.now()
        result = action()
        self.spans.append((part, before, self.now()))
        return result

    def seconds(self, part: str) -> float:
        """Return all time booked on a part."""
        return sum(before.until(after) for name, before, after in self.spans if name == part)


class BookedEvaluation:
    """An evaluation that books its computations."""

    def __init__(self, inner: Evaluation, ledger: Ledger, part: str):
        self.inner, self.ledger, self.part = inner, ledger, part
        self.layout, self.loss = inner.layout, inner.loss

    @cached_property
    def gradient(self) -> Tensor:
        """∇h."""
        return self.ledger.call(self.part, lambda: self.inner.gradient)

    @property
    def gradient_count(self) -> int:
        """Gradients that were computed so far."""
        return self.inner.gradient_count

    def operator(self, curvature: Callable[[Linearization], Operator]) -> Operator:
        """v ↦ B v; its set-up is booked here."""
        product = self.ledger.call(self.part, lambda: self.inner.operator(curvature))
        return lambda v: self.ledger.call("product", lambda: product(v))

    def squared_gradients(self) -> Tensor:
        """The diagonal of the empirical Fisher matrix."""
        return self.ledger.call(self.part, self.inner.squared_gradients)

    def fisher(self, draw: Draw) -> FisherSample:
        """Return the pieces of the Fisher matrix."""
        return self.inner.fisher(draw)

    def select(self, trials: Tensor) -> BookedEvaluation | None:
        """Return the evaluation of some rows, or None."""
        inner = self.ledger.call(self.part, lambda: self.inner.select(trials))
        return None if inner is None else BookedEvaluation(inner, self.ledger, self.part)


@dataclass(frozen=True)
class BookedObjective:
    """An objective that books its evaluations."""

    inner: ModelObjective
    ledger: Ledger
    part: str

    @property
    def layout(self) -> Layout:
        """Where each parameter tensor lies."""
        return self.inner.layout

    def value(self, parameters: Tensor) -> Tensor:
        """h(θ)."""
        return self.ledger.call("loss", lambda: self.inner.value(parameters))

    def evaluate(self, parameters: Tensor) -> BookedEvaluation:
        """Prepare h at θ."""
        evaluation = self.ledger.call(self.part, lambda: self.inner.evaluate(parameters))
        return BookedEvaluation(evaluation, self.ledger, self.part)


@dataclass(frozen=True)
class BookedSolver:
    """A linear solver that books its time as a whole, products included."""

    inner: LinearSolver
    ledger: Ledger

    def __call__(self, system: LinearSystem) -> CGResult:
        """Solve (B + λI) δ = −g."""
        return self.ledger.call("solver", lambda: self.inner(system))


Seconds = dict[str, float]


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Time whole steps of LeNet in turn, and within each step its parts."""
    short, long = (5, 10) if bench.quick else (15, 50)
    cases = {(*case, n): _case(bench, *case, n) for case in CASES for n in (short, long)}
    names = {" ".join(map(str, case)): case for case in cases}
    samples = interleave({name: cases[case] for name, case in names.items()}, bench.budget(50))
    return [_row(*case, samples[name]) for name, case in names.items()]


def _case(bench: Bench, recipe: str, curvature: str, n: int) -> Callable[[], Seconds]:
    h, other = problems.objective(bench.device), problems.objective(bench.device, seed=1)
    optimizer = problems.fixed_length(recipe, curvature, n)
    state = problems.warm_state(optimizer, recipe, h, other)
    return partial(_booked_step, bench, optimizer, state, h, other, n)


def _booked_step(
    bench: Bench, optimizer: Optimizer, state: State, h: ModelObjective, other: ModelObjective, n: int
) -> Seconds:  # fmt: skip
    """Take a step from the same state each time; return seconds by part."""
    ledger = Ledger(DeviceMoment if bench.device.type == "cuda" else HostMoment)
    gradient, curvature = BookedObjective(h, ledger, "gradient"), BookedObjective(other, ledger, "set-up")
    booked = replace(optimizer, solver=BookedSolver(optimizer.solver, ledger))
    bench.synchronize()
    _, info = ledger.call("step", lambda: booked.step(state, gradient, curvature))
    bench.synchronize()
    if int(info.cg_iterations) != n or not bool(info.finite):
        raise RuntimeError(f"the benchmark's step took {int(info.cg_iterations)} iterations instead of {n}")
    parts = {part: ledger.seconds(part) for part in ("step", "solver", *PARTS)}
    return {**parts, "rest": parts["step"] - sum(parts[part] for part in PARTS), "n": info.products.item()}


def _row(recipe: str, curvature: str, n: int, rounds: list[Seconds]) -> dict[str, Any]:
    return {
        "recipe": recipe,
        "curvature": curvature,
        "iterations": n,
        "products": int(rounds[0]["n"]),
        "ms": {part: spread([1e3 * r[part] for r in rounds]) for part in ("step", "solver", *PARTS, "rest")},
        "share": spread([r["rest"] / r["step"] for r in rounds]),
    }

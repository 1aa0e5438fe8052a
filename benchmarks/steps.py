"""Where the time of a step goes: products, gradients, losses, and the rest."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ahf_cli.hyperparameters import Curvature
from ahf_cli.optim import Evaluation, ModelObjective, Optimizer, State
from ahf_cli.optim.rows import Layout
from benchmarks import problems
from benchmarks.timing import Bench, interleave, spread

T = TypeVar("T")
CASES: tuple[tuple[str, Curvature], ...] = (("hf", "hessian"), ("hf", "ggn"), ("adaptive_hf", "hessian"))
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
    """A mark in the queue of a GPU: it does not make the host wait, which would change what is measured."""

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


class BookedEvaluation(Evaluation):
    """An evaluation that books what it computes."""

    def __init__(self, inner: Evaluation, ledger: Ledger, part: str):
        super().__init__(inner.layout, inner.leaves, inner.losses, inner.outputs)
        self.inner, self.ledger, self.part = inner, ledger, part

    @cached_property
    def differentiable_gradients(self) -> tuple[Tensor, ...]:
        """∇h with its graph."""
        return self.ledger.call(self.part, lambda: self.inner.differentiable_gradients)

    @cached_property
    def gradient(self) -> Tensor:
        """∇h."""
        return self.ledger.call(self.part, lambda: self.inner.gradient)

    def hessian_product(self, vectors: Tensor) -> Tensor:
        """∇²h v."""
        return self.ledger.call("product", lambda: self.inner.hessian_product(vectors))

    def gauss_newton_product(self, vectors: Tensor) -> Tensor:
        """Jᵀ H_L J v."""
        return self.ledger.call("product", lambda: self.inner.gauss_newton_product(vectors))


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

    def evaluate(self, parameters: Tensor) -> Evaluation:
        """Prepare h at θ."""
        evaluation = self.ledger.call(self.part, lambda: self.inner.evaluate(parameters))
        return BookedEvaluation(evaluation, self.ledger, self.part)


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Time whole steps of LeNet in turn, and within each step its parts."""
    lengths = (15,) if bench.quick else (15, 50)
    cases = {
        f"{recipe} {curvature} {n}": (recipe, curvature, n) for recipe, curvature in CASES for n in lengths
    }
    steps = {name: _case(bench, *case) for name, case in cases.items()}
    samples = interleave(steps, bench.budget(60))
    return [_row(*cases[name], rounds) for name, rounds in samples.items()]


def _case(bench: Bench, recipe: str, curvature: Curvature, n: int) -> Callable[[], dict[str, float]]:
    h, other = problems.objective(bench.device), problems.objective(bench.device, seed=1)
    optimizer = problems.fixed_length(recipe, curvature, n)
    state = problems.warm_state(optimizer, recipe, h, other)
    return partial(_booked_step, bench, optimizer, state, h, other, n)


def _booked_step(
    bench: Bench, optimizer: Optimizer, state: State, h: ModelObjective, other: ModelObjective, n: int
) -> dict[str, float]:
    """Take a step from the same state each time; return seconds by part."""
    ledger = Ledger(DeviceMoment if bench.device.type == "cuda" else HostMoment)
    gradient, curvature = BookedObjective(h, ledger, "gradient"), BookedObjective(other, ledger, "set-up")
    bench.synchronize()
    _, info = ledger.call("step", lambda: optimizer.step(state, gradient, curvature))
    bench.synchronize()
    if int(info.cg_iterations) != n or not bool(info.finite):
        raise RuntimeError(f"the benchmark's step took {int(info.cg_iterations)} iterations instead of {n}")
    parts = {part: ledger.seconds(part) for part in ("step", *PARTS)}
    return {**parts, "rest": parts["step"] - sum(parts[part] for part in PARTS), "n": info.products.item()}


def _row(recipe: str, curvature: str, n: int, rounds: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "recipe": recipe,
        "curvature": curvature,
        "iterations": n,
        "products": int(rounds[0]["n"]),
        "ms": {part: spread([1e3 * r[part] for r in rounds]) for part in ("step", *PARTS, "rest")},
        "share": spread([r["rest"] / r["step"] for r in rounds]),
    }

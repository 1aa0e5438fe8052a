"""An optimizer class of `torch.optim` or another package as an optimizer of rows, one object a row."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ahf_cli.optim.objective import Objective
from ahf_cli.optim.precision import in_full_precision
from ahf_cli.optim.state import State, StepInfo, begin, explicit_step
from ahf_cli.recipes.classes import constructed, load

Closure = Callable[[], Tensor]


class Row:
    """One trial's tensors and the object that moves them."""

    def __init__(
        self, make: type[Any], arguments: Mapping[str, Any], shapes: Sequence[torch.Size], like: Tensor
    ):
        self.flat = torch.empty(sum(map(torch.Size.numel, shapes)), dtype=like.dtype, device=like.device)
        pieces = torch.split(self.flat, [shape.numel() for shape in shapes])
        self.tensors = [nn.Parameter(p.view(s)) for p, s in zip(pieces, shapes, strict=True)]
        self.optimizer = make(self.tensors, **arguments)

    def step(
        self, theta: Tensor, gradient: Tensor, lr: float | None, seed: int, closure: Closure | None
    ) -> None:
        """Move the tensors from θ by one step of the object; θ and the gradient are (P,)."""
        self.put(theta, gradient)
        for group in self.optimizer.param_groups if lr is not None else ():
            group["lr"] = lr
        # Random numbers of a class are a pure function of the step, and a resumed run draws them again.
        with torch.random.fork_rng(devices=[], enabled=True):
            torch.manual_seed(seed)
            self.optimizer.step(*(() if closure is None else (closure,)))

    def put(self, theta: Tensor | None, gradient: Tensor) -> None:
        """Set θ, unless it is None, and the gradients."""
        with torch.no_grad():
            if theta is not None:
                self.flat.copy_(theta)
            pieces = torch.split(gradient, [t.numel() for t in self.tensors])
            for tensor, piece in zip(self.tensors, pieces, strict=True):
                tensor.grad = piece.detach().clone().view(tensor.shape)

    @torch.no_grad()
    def value(self) -> Tensor:
        """Return a copy of the tensors, (P,)."""
        return self.flat.clone()


@dataclass(frozen=True)
class Foreign:
    """θ ← the result of `step()` of a class, row by row.

    A class whose `step` needs a closure gets one.  It evaluates h and its gradient on the batch of the step,
    and each call counts as a gradient.
    """

    path: str
    settings: Mapping[str, Any]
    """arguments of the constructor that are no real numbers"""

    independent_batch = False
    curvature_batches = 1

    def init(self, parameters: Tensor, hyperparameters: Mapping[str, Tensor | float]) -> State:
        """Make the state of K trials before their first step."""
        return begin(parameters, hyperparameters, {})

    @in_full_precision
    def step(
        self, state: State, objective: Objective, curvature_objective: Objective | None = None
    ) -> tuple[State, StepInfo]:
        """Take one step in every active row."""
        if curvature_objective is not None:
            raise ValueError("curvature_batch: this recipe takes no curvature objective")
        theta, made = state.parameters, load(self.path)
        here = objective.evaluate(theta)
        new, counts = theta.clone(), torch.ones_like(state.step)
        memories = list(state.memories or [None] * len(theta))
        active = state.active.tolist()
        for k in (k for k, going in enumerate(active) if going):
            row = memories[k] = self._row(memories[k], state, k, objective.layout.shapes)
            closure = None
            if wants_closure(made):
                counts[k] = 0
                closure = self._closure(row, theta, k, objective, counts)
            lr = state.hyperparameters.get("lr")
            row.step(
                theta[k],
                here.gradient[k],
                None if lr is None else decimal(lr[k]),
                int(state.step[k]),
                closure,
            )
            new[k] = row.value()
        loss_after = objective.value(new)
        info = explicit_step(state, here, new - theta, loss_after, 0)
        after = state.moved(new, -here.gradient, state.damping, {}, info.finite)
        return after.remembering(tuple(memories)), info.counting(counts)

    def _row(self, memory: Any, state: State, k: int, shapes: Sequence[torch.Size]) -> Row:
        if isinstance(memory, Row):
            return memory
        values = {name: decimal(value[k]) for name, value in state.hyperparameters.items()}
        made = load(self.path)
        row = Row(made, constructed(made, self.settings, values), shapes, state.parameters)
        if memory is not None:
            row.optimizer.load_state_dict(memory)
        return row

    def _closure(self, row: Row, theta: Tensor, k: int, objective: Objective, counts: Tensor) -> Closure:
        def closure() -> Tensor:
            point = theta.clone()
            point[k] = row.value()
            found = objective.evaluate(point)
            row.put(None, found.gradient[k])
            counts[k] += 1
            return found.loss[k]

        return closure


def decimal(value: Tensor) -> float:
    """Return the shortest decimal that a number stands for: 0.999 for the float32 number next to it."""
    exact = value.item()
    if value.dtype == torch.float32:
        for digits in range(6, 9):
            short = float(f"{exact:.{digits}g}")
            if torch.tensor(short, dtype=value.dtype).item() == exact:
                return short
    return float(exact)


def wants_closure(made: type[Any]) -> bool:
    """Return whether `step` of a class cannot be called without a closure."""
    parameters = list(inspect.signature(made.step).parameters.values())[1:]
    return bool(parameters) and parameters[0].default is inspect.Parameter.empty


SMALL = 8
"""Largest length of an axis in `try_out`."""
STEPS = 3
"""Steps before and after the memory is saved in `try_out`."""


def try_out(
    path: str, settings: Mapping[str, Any], values: Mapping[str, float], shapes: Sequence[torch.Size]
) -> None:
    """Take a few steps of a class on small tensors with as many axes as these shapes.

    Raises ValueError if it cannot serve as a recipe.

    Its memory is saved and loaded as in a checkpoint: the steps after it must be bitwise those without.
    """
    made = load(path)
    like = torch.zeros(1)
    shapes = list(dict.fromkeys(torch.Size(min(d, SMALL) for d in shape) for shape in shapes))

    def fresh() -> Row:
        try:
            return Row(made, constructed(made, settings, values), shapes, like)
        except Exception as error:
            raise ValueError(f"{path}: {line(error)}") from None

    def walk(row: Row, theta: Tensor, first: int) -> Tensor:
        target = torch.linspace(-1, 1, len(theta))
        for step in range(first, first + STEPS):
            slope = theta - target + 0.1 * torch.sin(torch.arange(len(theta)) * (step + 1.0))

            def closure() -> Tensor:
                at = row.value()
                row.put(None, at - target)
                return 0.5 * (at - target).square().sum()

            try:
                row.step(theta, slope, values.get("lr"), step, closure if wants_closure(made) else None)
            except Exception as error:
                raise ValueError(f"{path}: step() failed: {line(error)}") from None
            theta = row.value()
        return theta

    row = fresh()
    middle = walk(row, torch.cos(torch.arange(float(row.flat.numel()))), 0)
    buffer = io.BytesIO()
    try:
        torch.save(row.optimizer.state_dict(), buffer)
        saved = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
        other = fresh()
        other.optimizer.load_state_dict(saved)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: its memory cannot be saved in a checkpoint: {line(error)}") from None
    if not torch.equal(walk(row, middle, STEPS), walk(other, middle, STEPS)):
        raise ValueError(
            f"{path}: a resumed run would differ, since state_dict() does not hold all its memory"
        )


def line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return next(iter(str(error).splitlines()), type(error).__name__)

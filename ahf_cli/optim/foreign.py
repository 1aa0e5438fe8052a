"""An optimizer class of `torch.optim` or another package as an optimizer of rows, one object a row."""

from __future__ import annotations

import inspect
import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import ahf_cli.optim.rows as rows
from ahf_cli.errors import AhfError
from ahf_cli.optim.explicit import ExplicitOptimizer, Move
from ahf_cli.optim.linearization import Evaluation
from ahf_cli.optim.objective import Objective
from ahf_cli.optim.state import State
from ahf_cli.recipes.classes import constructed, load

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]
"""θ ↦ h(θ) and ∇h(θ) of one trial on the batch of the step; (P,) → (), (P,)."""


class Row:
    """One trial's tensors and the object that moves them.

    Args:
        make: class of the object.
        arguments: keyword arguments of its constructor.
        theta: first values of the tensors, (P,).
        shapes: shapes of the tensors, in their order in θ.
    """

    def __init__(
        self, make: type[Any], arguments: Mapping[str, Any], theta: Tensor, shapes: Sequence[torch.Size]
    ):
        self.sizes = [shape.numel() for shape in shapes]
        pieces = zip(torch.split(theta, self.sizes), shapes, strict=True)
        self.tensors = [nn.Parameter(piece.clone().view(shape)) for piece, shape in pieces]
        with seeded(0, theta.device):
            self.optimizer = make(self.tensors, **arguments)
        self._wants_closure = wants_closure(make)

    def step(self, theta: Tensor, evaluate: Evaluate, lr: float | None, seed: int) -> Tensor:
        """Return θ after one step of the object from θ, (P,).

        A class with the modes `train()` and `eval()`, such as a schedule-free one, steps in the first and is
        read in the second.
        """

        def closure() -> Tensor:
            loss, gradient = evaluate(self.value())
            for tensor, piece in zip(self.tensors, torch.split(gradient, self.sizes), strict=True):
                tensor.grad = piece.clone().view(tensor.shape)  # a class may change it
            return loss

        self._put(theta)
        for group in self.optimizer.param_groups if lr is not None else ():
            group["lr"] = lr
        with seeded(seed, theta.device), self._training():
            if self._wants_closure:
                self.optimizer.step(closure)
            else:
                closure()
                self.optimizer.step()
        return self.value()

    @contextmanager
    def _training(self) -> Iterator[None]:
        modes = [getattr(self.optimizer, name, None) for name in ("train", "eval")]
        if not all(callable(mode) for mode in modes):
            yield
            return
        self.optimizer.train()
        yield
        self.optimizer.eval()

    @torch.no_grad()
    def _put(self, theta: Tensor) -> None:
        for tensor, piece in zip(self.tensors, torch.split(theta, self.sizes), strict=True):
            tensor.copy_(piece.view(tensor.shape))

    @torch.no_grad()
    def value(self) -> Tensor:
        """Return a copy of the tensors, (P,)."""
        return torch.cat([tensor.flatten() for tensor in self.tensors])


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators of PyTorch and Python within the block, and leave them as they were.

    Random numbers of a class are then a pure function of the step, so that a resumed run draws them again.
    """
    before = random.getstate()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(before)


@dataclass(frozen=True)
class Foreign(ExplicitOptimizer):
    """θ ← the result of `step()` of a class, row by row.

    A class whose `step` needs a closure gets one.  It evaluates h and its gradient on the batch of the step.
    Each call counts as a gradient of its row.
    """

    path: str
    settings: Mapping[str, Any]
    """arguments of the constructor that are no real numbers"""
    memory: tuple[str, ...] = ()

    def move(self, state: State, here: Evaluation) -> Move:
        """Raise TypeError: a class may need h at other points; see `move_on`."""
        raise TypeError("an optimizer class moves on an objective")

    def move_on(self, state: State, here: Evaluation, objective: Objective) -> Move:
        """Take a step of the class in every active row."""
        theta = state.parameters
        new, counts = theta.clone(), torch.zeros_like(state.step)
        memories = list(state.memories or [None] * len(theta))
        going = zip(state.active.tolist(), rows.finite(here.gradient).tolist(), strict=True)
        for k, (active, finite) in enumerate(going):
            if not active:
                continue
            if not finite:  # diverged: many classes fail at a NaN
                new[k], counts[k] = torch.nan, 1
                continue
            row = memories[k] = self._row(memories[k], state, k, objective.layout.shapes)
            lr = state.hyperparameters.get("lr")
            rate = None if lr is None else decimal(lr[k])
            evaluate = _evaluate(here, theta, k, objective, counts)
            try:
                new[k] = row.step(theta[k], evaluate, rate, int(state.step[k]))
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # of a decomposition, far away
                new[k] = torch.nan
            except AhfError:  # of the objective
                raise
            except Exception as error:
                raise ValueError(f"{self.path}: step() failed: {line(error)}") from error
        return Move(new, new - theta, {}, gradients=counts, memories=tuple(memories))

    def _row(self, memory: Any, state: State, k: int, shapes: Sequence[torch.Size]) -> Row:
        if isinstance(memory, Row):
            return memory
        values = {name: decimal(value[k]) for name, value in state.hyperparameters.items()}
        made = load(self.path)
        row = Row(made, constructed(made, self.settings, values), state.parameters[k], shapes)
        if memory is not None:
            row.optimizer.load_state_dict(memory)
        return row


def lbfgs() -> Foreign:
    """Return `torch.optim.LBFGS` with its strong Wolfe line search, for full batches (Liu and Nocedal 1989).

    A step has at most 20 iterations.  It has no tolerances: their absolute sizes depend on the units of h.
    """
    settings = {"line_search_fn": "strong_wolfe", "tolerance_grad": 0.0, "tolerance_change": 0.0}
    return Foreign("torch.optim.LBFGS", settings)


def _evaluate(here: Evaluation, theta: Tensor, k: int, objective: Objective, counts: Tensor) -> Evaluate:
    """Return the evaluation of a row, which counts its calls; at θ itself it is done already."""

    def evaluate(point: Tensor) -> tuple[Tensor, Tensor]:
        counts[k] += 1
        if torch.equal(point, theta[k]):
            return here.loss[k], here.gradient[k]
        all_points = theta.clone()
        all_points[k] = point
        found = objective.evaluate(all_points)
        return found.loss[k], found.gradient[k]

    return evaluate


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
STEPS = 6
"""Steps before and after the memory is saved in `try_out`; some classes renew matrices every tenth step."""


def try_out(
    path: str,
    settings: Mapping[str, Any],
    values: Mapping[str, float],
    shapes: Sequence[torch.Size],
    others: Sequence[Mapping[str, float]] = (),
) -> None:
    """Take a few steps of a class on small tensors with as many axes as these shapes.

    Its memory is saved and loaded as in a checkpoint: the steps after it must be bitwise those without.

    Args:
        path: class with its module.
        settings: arguments of its constructor that are no real numbers.
        values: hyperparameters by name.
        shapes: shapes of the tensors.
        others: further hyperparameters, such as the ends of ranges, which its constructor must accept.

    Raises:
        ValueError: the class cannot serve as a recipe.
    """
    made = load(path)
    shapes = list(dict.fromkeys(torch.Size(min(d, SMALL) for d in shape) for shape in shapes))
    size = sum(shape.numel() for shape in shapes)
    start, target = torch.cos(torch.arange(float(size))), torch.linspace(-1, 1, size)

    def fresh(own: Mapping[str, float]) -> Row:
        try:
            return Row(made, constructed(made, settings, own), start, shapes)
        except Exception as error:
            raise ValueError(f"{path}: {line(error)}") from None

    def walk(row: Row, theta: Tensor, first: int) -> Tensor:
        for step in range(first, first + STEPS):
            noise = 0.1 * torch.sin(torch.arange(size) * (step + 1.0))

            def evaluate(point: Tensor, noise: Tensor = noise) -> tuple[Tensor, Tensor]:
                slope = point - target + noise
                return 0.5 * slope.square().sum(), slope

            try:
                theta = row.step(theta, evaluate, values.get("lr"), step)
            except Exception as error:
                raise ValueError(f"{path}: step() failed: {line(error)}") from None
        return theta

    for own in others:
        fresh(own)
    row, other = fresh(values), fresh(values)
    middle = walk(row, start, 0)
    buffer = io.BytesIO()
    try:
        torch.save(row.optimizer.state_dict(), buffer)
        other.optimizer.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    except Exception as error:
        raise ValueError(f"{path}: its memory cannot be saved in a checkpoint: {line(error)}") from None
    if not torch.equal(walk(row, middle, STEPS), walk(other, middle, STEPS)):
        raise ValueError(
            f"{path}: a resumed run would differ, since state_dict() does not hold all its memory"
        )


def line(error: Exception) -> str:
    """Return the first line of an error, with its kind where the line alone may say too little."""
    first = next(iter(str(error).splitlines()), "")
    if first and isinstance(error, ValueError | RuntimeError):
        return first
    return f"{type(error).__name__}: {first}" if first else type(error).__name__

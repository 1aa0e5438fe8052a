"""Training of K trials of one recipe side by side, with their records."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ahf_cli.optim.rows as rows
from ahf_cli.optim import AnyOptimizer, State, StepInfo, Stop, compose_trial
from ahf_cli.optim.foreign import Row
from ahf_cli.optim.layers.compiled import numerics
from ahf_cli.recipes.recipe import Recipe
from ahf_cli.tasks.metrics import SETS
from ahf_cli.tasks.task import CURVATURE_STREAM, GRADIENT_STREAM, Task, mini_batches
from ahf_cli.training.evaluate import evaluate
from ahf_cli.training.records import CurveRow, Progress, Start, StepRow, TrialResult

_INTEGERS = ("cg_iterations",)
_FROM_INFO = (
    "loss", "loss_after", "direction_l2", "direction_l1", "direction_sum_l2", "update_l2", "step_size",
    "eq3_step_size", "damping", "reduction_ratio", "model_value", "cg_iterations", "smoothness_gradient",
    "smoothness_direction", "stop", "products", "active", "finite",
)  # fmt: skip
NAN = math.nan
REPEAT_STREAM = 3
"""Number of the stream of signs from the training seed, after those of weights and batches."""
WORST = 1e30
"""The sampler's value of a trial whose first value is not finite."""


class StoppedError(Exception):
    """Training stopped on request; the checkpoints hold everything up to the last finished step."""


@dataclass(frozen=True)
class Plan:
    """The plan of trials: number of steps, times of evaluation, and seed."""

    steps: int
    eval_every: int
    seed: int
    objective: str = "train_loss"
    eval_subset: int | None = None
    checkpoint_every: int | None = None
    longer: Mapping[str, int] = field(default_factory=dict)
    """recipe → factor of its steps, and of the steps between two evaluations"""
    cap: float | None = None
    """largest value for the sampler, and value of a diverged trial; None: the first value of the trial"""

    def writes_at(self, step: int) -> bool:
        """Tell whether trials write a checkpoint, of all rows so far: at distances of at most 2 %."""
        every = self.checkpoint_every
        return every is not None and step % (every << (step // (100 * every)).bit_length()) == 0

    def of(self, recipe: str) -> Plan:
        """Return the plan of one recipe."""
        times = self.longer.get(recipe, 1)
        return replace(self, steps=times * self.steps, eval_every=times * self.eval_every, longer={})


@dataclass
class Trial:
    """The record of one row up to its last step."""

    slot: int
    params: dict[str, float]
    seed: int
    order: int  # seed of the batch order
    curve: list[CurveRow] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)
    products: int = 0
    gradients: int = 0
    losses: float = 0.0
    seconds: float = 0.0
    diverged_at: int = 0
    still_from: int = 0
    error: str = ""


@dataclass
class Batch:
    """K trials at the same step, and the state with their rows."""

    recipe: Recipe
    plan: Plan
    state: State
    trials: list[Trial]
    step: int = 0

    def row(self, k: int) -> dict[str, Any]:
        """Return one trial as plain values and tensors, for a checkpoint."""
        state = {key: _copied(value, k) for key, value in self.state.state_dict().items()}
        trial = asdict(self.trials[k]) | {"curve": [row.plain() for row in self.trials[k].curve]}
        return {"version": 1, "step": self.step, "state": state, "trial": trial}


def _copied(value: Any, k: int) -> Any:
    """Return row k of a tensor, or of the tensors or memories in a dictionary or tuple."""
    if isinstance(value, dict):
        return {name: _copied(inner, k) for name, inner in value.items()}
    if isinstance(value, tuple):
        memory = value[k]
        return (memory.optimizer.state_dict() if isinstance(memory, Row) else memory,)
    # Without the memory of the other rows, which a saved view would bring along.
    return value[k : k + 1].detach().to("cpu", copy=True)


def _concatenated(values: Sequence[Any]) -> Any:
    """Return the rows of tensors, or of the tensors or memories in dictionaries or tuples, joined."""
    if isinstance(values[0], dict):
        return {name: _concatenated([value[name] for value in values]) for name in values[0]}
    if isinstance(values[0], tuple):
        return tuple(memory for value in values for memory in value)
    return torch.cat(values)  # type: ignore[arg-type]


def begin(
    task: Task,
    recipe: Recipe,
    plan: Plan,
    trials: Mapping[int, Mapping[str, float]],
    starts: Mapping[int, Start] | None = None,
) -> Batch:
    """Start trials from hyperparameters by slot; those without a start of their own have the plan's seed."""
    complete = {slot: recipe.complete(params) for slot, params in trials.items()}
    own = {slot: (starts or {}).get(slot, Start(plan.seed)) for slot in complete}
    theta = torch.stack([initial(task, start) for start in own.values()])
    values = {
        name: torch.tensor([p[name] for p in complete.values()], dtype=torch.float64).to(theta)
        for name in recipe.hyperparameters
    }
    state = compose_trial(recipe.structure, plan.steps).init(theta, values)
    rows = [Trial(slot, params, own[slot].seed, own[slot].of_batches) for slot, params in complete.items()]
    return Batch(recipe, plan, state, rows)


def initial(task: Task, start: Start) -> Tensor:
    """Return the initial weights θ of a start, (P,); those of repeat r > 0 are θ∘(1 + εξ_r) with ξ_r = ±1."""
    theta = task.initial(start.seed)
    if not start.repeat:
        return theta
    signs = np.random.default_rng([start.seed, REPEAT_STREAM, start.repeat]).integers(0, 2, len(theta))
    eps = torch.finfo(theta.dtype).eps
    return theta + eps * theta * torch.from_numpy(2 * signs - 1).to(theta)


def dump(batch: Batch, k: int) -> bytes:
    """Serialize one trial of a batch."""
    buffer = io.BytesIO()
    torch.save(batch.row(k), buffer)
    return buffer.getvalue()


def restore(task: Task, recipe: Recipe, plan: Plan, checkpoint: bytes, start: Start | None = None) -> Batch:
    """Continue one trial from its checkpoint, bitwise; it has the seeds of `start`, by default the plan's."""
    own = start or Start(plan.seed)
    content = torch.load(io.BytesIO(checkpoint), weights_only=True, map_location=task.device)
    saved = content["trial"]
    trial = Trial(
        **{
            "losses": NAN,  # of an older version, which did not count them
            **saved,
            "seed": own.seed,
            "order": own.of_batches,
            "curve": [CurveRow.of(row) for row in saved["curve"]],
            "steps": [StepRow(**row) for row in saved["steps"]],
        }
    )
    return Batch(recipe, plan, State(**content["state"]), [trial], content["step"])


def side_by_side(batches: Iterable[Batch]) -> list[Batch]:
    """Join the batches of one recipe and plan that are at the same step."""
    groups: dict[int, list[Batch]] = {}
    for batch in batches:
        groups.setdefault(batch.step, []).append(batch)
    return [_joined(group) for group in groups.values()]


def _joined(group: Sequence[Batch]) -> Batch:
    state = _concatenated([batch.state.state_dict() for batch in group])
    trials = [trial for batch in group for trial in batch.trials]
    return replace(group[0], state=State(**state), trials=trials)


def train(
    task: Task,
    batch: Batch,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_checkpoint: Callable[[int, bytes, int], None] = lambda slot, data, step: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[TrialResult]:
    """Run a batch to the end of its plan, and return its results; its trials then hold curves and steps.

    Args:
        task: data and model.
        batch: from `begin` or `restore`; advanced in place.
        on_progress: called after every step of each trial.
        on_checkpoint: called with (slot, bytes, step) of each trial where `Plan.writes_at`, and at a stop.
        should_stop: called after every step; true ends the training.

    Raises:
        StoppedError: `should_stop` returned true; `on_checkpoint` has been called.
    """
    plan = batch.plan
    optimizer = compose_trial(batch.recipe.structure, plan.steps)
    if batch.step == 0 and not batch.trials[0].curve:
        _evaluate(task, batch)
        _report(batch, on_progress)
    while batch.step < plan.steps and bool(batch.state.active.any()):
        _step(task, batch, optimizer)
        if batch.step % plan.eval_every == 0 or batch.step == plan.steps:
            _evaluate(task, batch)
        _report(batch, on_progress)
        last = batch.step == plan.steps
        stop = should_stop() and not last
        if stop or (plan.writes_at(batch.step) and not last):
            for k, trial in enumerate(batch.trials):
                on_checkpoint(trial.slot, dump(batch, k), batch.step)
        if stop:
            raise StoppedError
    return [_result(batch, trial) for trial in batch.trials]


def _step(task: Task, batch: Batch, optimizer: AnyOptimizer) -> None:
    seeds, before = [trial.order for trial in batch.trials], time.perf_counter()
    first, count = _mini_batches(batch)
    objective = task.objective(seeds, GRADIENT_STREAM, first, count)
    many = optimizer.curvature_batches
    wanted = (seeds, CURVATURE_STREAM, many * first, many * count)
    curvature = task.objective(*wanted) if optimizer.independent_batch else None
    theta = batch.state.parameters
    size = rows.l2(theta)
    batch.state, info = optimizer.step(batch.state, objective, curvature)
    batch.step += 1
    _record(batch, info, count, many, size)
    seconds = (time.perf_counter() - before) / len(batch.trials)
    for k, trial in enumerate(batch.trials):
        trial.seconds += 0 if trial.diverged_at else seconds
        if trial.diverged_at == batch.step:
            tried = [row for row in (theta[k], theta[k] + info.update[k]) if bool(row.isfinite().all())]
            said = task.not_finite(tried, trial.order, first, count)
            trial.error = f"{said} was not finite at step {batch.step}" if said else ""


def _mini_batches(batch: Batch) -> tuple[int, int]:
    """Return the number of mini-batches before the next step, and of those in it."""
    return mini_batches(batch.step, batch.plan.steps, batch.recipe.structure.batch_growth)


def _record(batch: Batch, info: StepInfo, batches: int, curvature_batches: int, size: Tensor) -> None:
    """Record the step in every active trial, by one transfer from the device; ‖θ‖ before it is `size`, (K,).

    A gradient, product or loss on several mini-batches counts as that many.
    """
    still = info.update_l2 <= torch.finfo(size.dtype).eps * size
    columns = [*(getattr(info, name).double() for name in _FROM_INFO), still.double()]
    table = torch.stack(columns).cpu().T.tolist()
    gradients = info.gradients
    counts = [gradients] * len(table) if isinstance(gradients, int) else gradients.tolist()
    for trial, count, (*values, below) in zip(batch.trials, counts, table, strict=True):
        row = dict(zip(_FROM_INFO, values, strict=True))
        if not row.pop("active"):
            continue
        trial.products += batches * curvature_batches * int(row.pop("products"))
        trial.gradients += batches * count
        trial.losses += batches * info.losses
        trial.diverged_at = 0 if row.pop("finite") else batch.step
        if not trial.diverged_at:  # a trial that stood still before it diverged has stood still
            trial.still_from = (trial.still_from or batch.step) if below else 0
        stop = Stop(int(row.pop("stop"))).name.lower()
        integers = {name: int(row.pop(name)) for name in _INTEGERS}
        trial.steps.append(StepRow(step=batch.step, stop=stop, **integers, **row))


def _evaluate(task: Task, batch: Batch) -> None:
    parameters, split, nan = batch.state.evaluated, task.split, torch.full((len(batch.trials),), NAN)
    found = {
        "train": evaluate(task, parameters, split.train, batch.plan.eval_subset),
        "validation": evaluate(task, parameters, split.validation) if split.validation is not None else {},
        "test": evaluate(task, parameters, split.test),
    }
    measured = {
        f"{where}_{name}": found[where].get(name, nan).tolist() for where in SETS for name in found["train"]
    }
    per_epoch = len(split.train) // task.batch_size
    for k, trial in enumerate(batch.trials):
        if trial.diverged_at:
            continue
        trial.curve.append(
            CurveRow(
                step=batch.step,
                epoch=_mini_batches(batch)[0] / per_epoch,
                measured={column: values[k] for column, values in measured.items()},
                products=trial.products,
                gradients=trial.gradients,
                seconds=trial.seconds,
                losses=trial.losses,
            )
        )


def _report(batch: Batch, on_progress: Callable[[Progress], None]) -> None:
    for trial in batch.trials:
        row = trial.curve[-1] if trial.curve[-1].step == batch.step else None
        last = trial.steps[-1] if trial.steps else None
        loss = last.loss if last else trial.curve[0].measured["train_loss"]
        on_progress(Progress(batch.recipe.name, trial.slot, batch.step, batch.plan.steps, loss, row, last))


def _result(batch: Batch, trial: Trial) -> TrialResult:
    first, final, plan = trial.curve[0].measured, trial.curve[-1].measured, batch.plan
    columns = ["train_loss", *(n for w in ("test", "validation") for n in final if n.startswith(f"{w}_"))]
    objective = final[plan.objective]
    diverged = bool(trial.diverged_at) or not math.isfinite(objective)
    worst = first[plan.objective] if plan.cap is None else plan.cap
    cap = worst if math.isfinite(worst) else WORST
    return TrialResult(
        recipe=batch.recipe.name,
        slot=trial.slot,
        status="diverged" if diverged else "ok",
        steps=trial.diverged_at or batch.step,
        planned_steps=plan.steps,
        value=cap if diverged else min(objective, cap),
        objective=plan.objective,
        params=trial.params,
        seed=trial.seed,
        measured={name: NAN if diverged else final[name] for name in columns},
        seconds=trial.seconds,
        stalled=not diverged and not fell(first["train_loss"], final["train_loss"]),
        numerics=numerics(batch.state.parameters.device.type),
        still_from=trial.still_from,
        error=trial.error,
        zero_steps=sum(row.step_size == 0 and row.eq3_step_size < 0 for row in trial.steps),
    )


def fell(first: float, last: float) -> bool:
    """Return whether a training loss fell by at least 5 % of its first value."""
    return last <= (0.95 * first if first > 0 else first - 0.05 * abs(first))

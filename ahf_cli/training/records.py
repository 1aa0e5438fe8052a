"""Records of training: plain data, without files, searches or plots.

The fields of `StepRow` are the columns of `steps.csv.gz`; the keys of `CurveRow.plain` are the columns of
`curve.csv`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ahf_cli.tasks.metrics import MEASURED, digits

Status = Literal["ok", "diverged", "failed"]


@dataclass(frozen=True)
class Start:
    """The random numbers of a trial."""

    seed: int
    """training seed: initial weights, and the batch order without a seed of its own"""
    repeat: int = 0
    """if > 0, the initial weights differ in their last digits from those of other repeats"""
    order: int | None = None
    """seed of the batch order; None: the training seed"""

    @property
    def of_batches(self) -> int:
        """Seed of the batch order."""
        return self.seed if self.order is None else self.order


@dataclass(frozen=True)
class CurveRow:
    """One evaluation on whole sets."""

    step: int
    epoch: float
    measured: dict[str, float]
    """metrics by column, such as `train_loss`; NaN for a split without a validation set"""
    products: int
    """curvature products so far"""
    gradients: int
    """gradient evaluations so far"""
    seconds: float
    """training time so far, evaluation excluded"""
    losses: float = math.nan
    """loss evaluations without a gradient so far; NaN in records of older versions"""

    def plain(self) -> dict[str, Any]:
        """Return the values by column, in the order of `curve.csv`."""
        return _spread(vars(self), "measured")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> CurveRow:
        """Return the row with these values by column."""
        return cls(**_gathered(values, "measured"))


@dataclass(frozen=True)
class StepRow:
    """One optimizer step."""

    step: int
    loss: float
    """h(θ) on the gradient batch, before the step"""
    loss_after: float
    """h(θ + u) on the same batch"""
    direction_l2: float
    direction_l1: float
    direction_sum_l2: float
    update_l2: float
    step_size: float
    """α of the step taken"""
    eq3_step_size: float
    """Eq. 3 as printed, before clipping at 0, also for other step sizes; NaN without its hyperparameters"""
    damping: float
    """λ of this step's linear system"""
    reduction_ratio: float
    model_value: float
    """q(δ)"""
    cg_iterations: int
    stop: str
    """reason for which CG stopped"""
    smoothness_gradient: float
    """L̂ of Eq. 2 along the update, with g = ∇h"""
    smoothness_direction: float
    """L̂ of Eq. 2 along the update, with g = −δ"""


@dataclass(frozen=True)
class TrialResult:
    """The end of a trial: the content of `result.json`."""

    recipe: str
    slot: int
    status: Status
    steps: int
    """steps taken; for a diverged trial the step of divergence"""
    planned_steps: int
    value: float
    """the sampler's value: the objective, capped at the loss of guessing or at its first value"""
    objective: str
    """name of the objective in the configuration"""
    params: dict[str, float]
    """all hyperparameters, free and fixed"""
    seed: int
    """training seed: initial weights and batch order"""
    measured: dict[str, float]
    """final metrics by column, such as `test_accuracy`; NaN for a diverged trial"""
    seconds: float
    """training time, evaluation excluded"""
    stalled: bool = False
    """status ok, but the training loss fell by less than 5 % of its first value"""
    still_from: int = -1
    """first step of the last unbroken run of updates with ‖u‖ ≤ ε ‖θ‖; 0 without one, −1 in older records"""
    zero_steps: int = 0
    """number of steps with α = 0, since Eq. 3 was negative"""
    attempts: int = 1
    error: str = ""
    """for a failed trial: the exception in one line; for a diverged one: the term that was not finite"""
    started: str = ""
    """ISO 8601, UTC"""
    host: str = ""
    numerics: str = ""
    """numerical path: compiled, pytorch or cuda; empty in records of older versions, which are by PyTorch"""
    extra: dict[str, float] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Return the values by key, in the order of `result.json`, without those of an older version."""
        values = _spread(vars(self), "measured")
        absent = [*([] if self.numerics else ["numerics"]), *(["still_from"] if self.still_from < 0 else [])]
        return {k: v for k, v in values.items() if k not in absent}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TrialResult:
        """Return the result with these values by key."""
        return cls(**_gathered(values, "measured"))


def _spread(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a mapping in which the items of one value replace that value."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= value if name == key else {name: value}
    return flat


def _gathered(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a mapping with its metrics gathered under one key."""
    own = {name: value for name, value in values.items() if not MEASURED.fullmatch(name)}
    return own | {key: {name: value for name, value in values.items() if MEASURED.fullmatch(name)}}


def headline_of(measured: Mapping[str, float]) -> tuple[str, float]:
    """Return column and value of the headline, the last metric of the test set."""
    column = [name for name in measured if name.startswith("test_")][-1]
    return column, measured[column]


def headline(measured: Mapping[str, float]) -> str:
    """Return the headline as text, such as `test accuracy 0.8512`."""
    column, value = headline_of(measured)
    return f"{column.replace('_', ' ')} {digits(value)}"


@dataclass(frozen=True)
class Progress:
    """The progress of a running trial at one step."""

    recipe: str
    slot: int
    step: int
    planned_steps: int
    loss: float
    """loss of the last batch"""
    row: CurveRow | None = None
    """the evaluation at this step, if there was one"""
    last: StepRow | None = None
    """the record of the last step; None before the first"""


@dataclass(frozen=True)
class Running:
    """A trial that trains now."""

    slot: int
    host: str
    seconds: float
    """time since it began or continued"""
    row: CurveRow | None = None
    """its last evaluation"""


@dataclass(frozen=True)
class RecipeStatus:
    """The progress of a search in one recipe."""

    recipe: str
    planned: int
    ok: int
    diverged: int
    failed: int
    running: tuple[Running, ...]
    best_value: float | None
    """value of the best trial; in a folder without the cap"""
    trial_seconds: float | None
    """mean time of a finished trial, evaluation included"""

    @property
    def waiting(self) -> int:
        """Number of trials that have not begun, or wait for another attempt."""
        return max(0, self.planned - self.ok - self.diverged - self.failed - len(self.running))

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the last trial ends, if as many run as now; None if unknown."""
        if not self.waiting and not self.running:
            return 0.0
        if self.trial_seconds is None or not self.running:
            return None
        begun = sum(min(r.seconds, self.trial_seconds) for r in self.running)
        return ((self.waiting + len(self.running)) * self.trial_seconds - begun) / len(self.running)

"""Metrics: the numbers that a task measures on whole sets, declared once.

Imports no torch: reports and commands read labels, units and bounds here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ahf_cli.errors import InputError
from ahf_cli.tasks.catalogue import LOSSES
from ahf_cli.tasks.datasets import DATA_SETS

if TYPE_CHECKING:
    from torch import Tensor

SETS = {"train": "training", "validation": "validation", "test": "test"}
"""The sets of a task, and their names in words."""
MEASURED = re.compile(r"(train|validation|test)_[a-z][a-z0-9_]{0,40}")
"""Names of the columns that hold a metric on a set."""
Better = Literal["lower", "higher"]
TOLERANCE = 0.04
"""largest error of a solved sequence (Hochreiter and Schmidhuber 1997)"""
SOLVED = 0.01
"""largest share of unsolved sequences of a solved problem (Martens and Sutskever 2011)"""


def digits(value: float) -> str:
    """Return a value with four decimals; one that they do not show well has three digits, as 4.27e-07."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e6 or value != value else f"{value:.2e}"


@dataclass(frozen=True)
class Column:
    """A metric on one set: a column of curves and results."""

    column: str
    label: str
    better: Better
    unit: str
    short: str
    """the unit in one word"""
    top: float = math.inf
    """largest possible value; the least is 0"""
    baseline: float | None = None
    """value of guessing, which is the value of a diverged trial; None if guessing has no value"""
    start: float | None = None
    """median of the trials' first values, if they are known"""
    bar: float | None = None
    """value from which on a trial has trained; None if the metric has no bar"""
    log: bool = False
    """whether its axis is logarithmic"""

    def reaches(self, value: float) -> bool:
        """Return whether a value is past the bar."""
        if self.bar is None:
            return False
        return value >= self.bar if self.better == "higher" else value <= self.bar

    @property
    def edge(self) -> float:
        """Largest value that a panel shows: one diverging mean would flatten every other curve."""
        if math.isfinite(self.top):
            return self.top
        return 1.5 * self.scale

    @property
    def scale(self) -> float:
        """A value of an untrained model: the baseline, else the first value; ∞ without either."""
        known = (v for v in (self.baseline, self.start) if v is not None and math.isfinite(v) and v > 0)
        return next(known, math.inf)

    @property
    def named(self) -> str:
        """The column in words with its unit, such as `training loss (nats)`."""
        return f"{self.label} ({self.short})"


@dataclass(frozen=True)
class Metric:
    """A mean over the examples of a set."""

    name: str
    """its columns' name without the set, as `accuracy` in `test_accuracy`"""
    label: str
    better: Better
    unit: str
    short: str
    top: float = math.inf
    baseline: float | None = None
    start: float | None = None
    bar: float | None = None
    """value from which on a trial has trained; for two classes at least 1.5 times the value of guessing"""
    log: bool = False
    """whether its axis is logarithmic"""

    def on(self, where: str) -> Column:
        """Return its column for a set, a key of `SETS`."""
        label = f"{SETS[where]} {self.label}"
        return Column(
            f"{where}_{self.name}", label, self.better, self.unit, self.short, self.top, self.baseline,
            self.start, self._bar, self.log,
        )  # fmt: skip

    @property
    def _bar(self) -> float | None:
        if self.bar is None or self.better == "lower" or self.baseline is None:
            return self.bar
        return max(self.bar, 1.5 * self.baseline)


@dataclass(frozen=True)
class Metrics:
    """The metrics of a task: first the loss that training minimizes; the last is the headline."""

    all: tuple[Metric, ...]

    @property
    def loss(self) -> Column:
        """The training loss."""
        return self.all[0].on("train")

    @property
    def headline(self) -> Column:
        """The last metric on the test set, which ranks recipes."""
        return self.all[-1].on("test")

    @property
    def shown(self) -> tuple[Column, Column]:
        """The two columns of tables and figures."""
        return self.loss, self.headline

    @property
    def curve_columns(self) -> list[str]:
        """Columns of an evaluation, in the order of files."""
        return [f"{where}_{metric.name}" for where in SETS for metric in self.all]

    @property
    def result_columns(self) -> list[str]:
        """Columns of a result, in the order of files: the training loss, then test and validation."""
        others = [f"{where}_{metric.name}" for where in ("test", "validation") for metric in self.all]
        return [f"train_{self.all[0].name}", *others]

    @property
    def baselines(self) -> tuple[float | None, ...]:
        """The values of guessing."""
        return tuple(metric.baseline for metric in self.all)

    @property
    def guessing(self) -> bool:
        """Whether all metrics have a value of guessing."""
        return None not in self.baselines

    def column(self, name: str) -> Column:
        """Return a column by its name, such as `validation_loss`."""
        where, _, rest = name.partition("_")
        (metric,) = (m for m in self.all if m.name == rest)
        return metric.on(where)

    def as_data(self) -> list[dict[str, Any]]:
        """Return the metrics as plain data; an unbounded `top` is None."""
        rows = [asdict(m) | {"top": None if math.isinf(m.top) else m.top} for m in self.all]
        own = [{key: value for key, value in row.items() if key != "start"} for row in rows]
        absent: dict[str, Any] = {"bar": None, "log": False}  # younger than the first stored metrics
        return [{k: v for k, v in row.items() if k not in absent or v != absent[k]} for row in own]

    def starting(self, first: Mapping[str, float]) -> Metrics:
        """Return the metrics with the first values of the test set, by column."""
        return Metrics(tuple(replace(m, start=first.get(f"test_{m.name}")) for m in self.all))

    @classmethod
    def of_data(cls, rows: Iterable[Mapping[str, Any]]) -> Metrics:
        """Return the metrics from the rows that `as_data` returns."""
        found = []
        for row in rows:
            known = MEASURES.get(str(row.get("name")))  # the bar is younger than the first stored metrics
            bar = {"bar": known.metric.bar} if known else {}
            found.append(Metric(**{**bar, **row, "top": math.inf if row["top"] is None else row["top"]}))
        return cls(tuple(found))


@dataclass(frozen=True)
class Measure:
    """A metric beside the loss, with its function."""

    metric: Metric
    """without its baseline, which depends on the task"""
    value: Callable[..., Any]
    """function (outputs (K, N, …), targets (N, …)) → value of each example, (K, N)"""
    baseline: Callable[[int], float] | None = None
    """number of classes → value of guessing"""
    classes: bool = True
    """whether targets are classes instead of numbers"""
    of_mean: Callable[[Any], Any] | None = None
    """function of the mean over examples that gives the metric; None: the mean itself"""


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1 for each example whose largest output is its class, else 0; (K, N, C), (N,) → (K, N)."""
    return outputs.argmax(dim=-1) == targets


def wrong(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1 for each example whose largest output is not its class, else 0; (K, N, C), (N,) → (K, N)."""
    return outputs.argmax(dim=-1) != targets


def wrong_bits(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1 for each example with a logit on the wrong side of 0, else 0; (K, N, B), (N, B) → (K, N)."""
    return ((outputs > 0) != (targets > 0.5)).any(dim=-1)


def failures(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1 for each example with an output further than 0.04 from its target, else 0; → (K, N).

    Outputs (K, N, D), targets (N, D); the tolerance is that of Hochreiter and Schmidhuber (1997).
    """
    return ((outputs - targets).abs() > TOLERANCE).any(dim=-1)


def image_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return Σ_i (σ(z_i) − y_i)² over the pixels i of each image; (K, N, D), (N, D) → (K, N)."""
    return (outputs.sigmoid() - targets).square().sum(dim=-1)


def bits_per_character(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return −mean_t log₂ softmax(z_t)[y_t] over the positions t; (K, N, T, C), (N, T) → (K, N)."""
    log_p = outputs.log_softmax(dim=-1)
    chosen = log_p.gather(-1, targets.expand(outputs.shape[:-1]).unsqueeze(-1))
    return -chosen.squeeze(-1).mean(dim=-1) / math.log(2)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return v (u − u*)² at each point of an equation; (K, N, 2) of (r, u), (N, 3) of (w, u*, v) → (K, N)."""
    return targets[..., 2] * (outputs[..., 1] - targets[..., 1]).square()


def second_output(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the second output of each example, as ‖θ − θ*‖ of a fit; (K, N, 2) → (K, N)."""
    return outputs[..., 1]


def root(mean: Tensor) -> Tensor:
    """Return the square root."""
    return mean.sqrt()


MEASURES: dict[str, Measure] = {
    "accuracy": Measure(
        Metric("accuracy", "accuracy", "higher", "fraction correct", "fraction", 1.0, bar=0.5),
        accuracy,
        lambda classes: 1 / classes,
    ),
    "wrong": Measure(
        Metric("wrong", "error rate", "lower", "fraction wrong", "fraction", 1.0, bar=SOLVED),
        wrong,
        lambda classes: 1 - 1 / classes,
    ),
    "wrong_bits": Measure(
        Metric("wrong_bits", "error rate", "lower", "fraction with a wrong bit", "fraction", 1.0, bar=SOLVED),
        wrong_bits,
        classes=False,
    ),
    "failures": Measure(
        Metric("failures", "failure rate", "lower", "fraction off by > 0.04", "fraction", 1.0, bar=SOLVED),
        failures,
        classes=False,
    ),
    "image_error": Measure(
        Metric("image_error", "reconstruction error", "lower", "squared error per image", "squared error"),
        image_error,
        classes=False,
    ),
    "bits_per_character": Measure(
        Metric("bits_per_character", "cross-entropy", "lower", "bits per character", "bits"),
        bits_per_character,
        math.log2,
    ),
    "error": Measure(
        Metric("error", "error", "lower", "root mean square of u − u*", "absolute", log=True),
        squared_error, classes=False, of_mean=root,
    ),
    "distance": Measure(
        Metric("distance", "distance", "lower", "‖θ − θ*‖ to the known parameters", "‖θ − θ*‖", log=True),
        second_output, classes=False,
    ),
}  # fmt: skip
"""The metrics beside the loss, by name; plug-ins add theirs."""


def classification(classes: int) -> Metrics:
    """Return mean cross-entropy and accuracy, with ln C and 1/C for guessing among C classes."""
    return _metrics("cross_entropy", classes, ("accuracy",))


def metrics_of(task: Mapping[str, Any]) -> Metrics:
    """Return the metrics of a task, the section `task` of a configuration or of a study's identity.

    A missing or empty section, as in a damaged study, gives the metrics of ten classes.

    Raises:
        InputError: the data set or loss is unknown, for example because its plug-in is not loaded.
    """
    for key, known in (("data", DATA_SETS), ("loss", LOSSES)):
        name = task.get(key)
        if isinstance(name, str) and name not in known:
            raise InputError(
                f"task.{key}: {name!r} is not known; if a plug-in registers it, add --plugin FILE.py"
            )
    data, loss = DATA_SETS.get(str(task.get("data"))), str(task.get("loss", "cross_entropy"))
    if data is None or loss not in LOSSES:
        return TEN_CLASSES
    return _metrics(loss, data.classes, data.metrics)


def _metrics(loss: str, classes: int | None, names: Iterable[str]) -> Metrics:
    def baseline(of: Callable[[int], float] | None) -> float | None:
        return None if of is None or classes is None else of(classes)

    own = LOSSES[loss]
    first = Metric(
        "loss", "loss", "lower", own.unit, own.short, baseline=baseline(own.chance), log=own.equation
    )
    others = [
        Metric(**{**vars(MEASURES[n].metric), "baseline": baseline(MEASURES[n].baseline)}) for n in names
    ]
    return Metrics((first, *others))


TEN_CLASSES = classification(10)

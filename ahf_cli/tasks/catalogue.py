"""The models and losses by name.

Imports neither torch nor what the names stand for: a built-in one is the place where it is, and imported when
it is made.
"""

from __future__ import annotations

import inspect
import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from ahf_cli.optim.losses import OutputLoss

Place = str
"""`module:attribute`"""

MODELS: dict[str, Place | Callable[[tuple[int, ...], int], Any]] = {
    name: f"ahf_cli.tasks.models:{name}" for name in ("lenet", "mlp", "net3c3d", "alexnet_small", "resnet34")
}
"""By name, functions (shape of an input, number of classes) → module, or where they are."""


@dataclass(frozen=True)
class Loss:
    """A loss by name."""

    make: Place | Callable[[], Any]
    """→ `OutputLoss`"""
    chance: Callable[[int], float] | None = None
    """the loss of guessing among so many classes, which a diverged trial counts with; None: it has none"""
    unit: str = "mean loss"
    short: str = "loss"
    """the unit in one word"""
    classes: bool = True
    """whether targets are classes; else they are numbers"""
    distribution: bool = False
    """whether it is the negative log-likelihood of a known distribution, so that it has a Fisher matrix"""


LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(
        "ahf_cli.optim.losses:SoftmaxCrossEntropy", math.log, "mean cross-entropy, nats", "nats",
        distribution=True,
    ),
    "squared_error": Loss(
        "ahf_cli.optim.losses:SquaredError", None, "mean sum of squared errors",
        "squared error", classes=False,
    ),
}  # fmt: skip
"""The losses by name."""


def make_model(name: str, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Make a model in evaluation mode: a loss is to be a function of the parameters and one example alone.

    Its weights are not used, only its function and the shapes of its parameters.
    """
    made: nn.Module = found(MODELS[name])(shape, classes)
    return made.eval()


def make_loss(name: str) -> OutputLoss:
    """Make a loss."""
    made: OutputLoss = found(LOSSES[name].make)()
    return made


def describe(entry: Place | Callable[..., Any]) -> str:
    """Return the first line of what is said of a model or loss where it is written."""
    return inspect.cleandoc(found(entry).__doc__ or "a plug-in's own").partition("\n")[0]


def found(entry: Place | Callable[..., Any]) -> Callable[..., Any]:
    """Return a registered function or class, importing its module."""
    return pkgutil.resolve_name(entry) if isinstance(entry, str) else entry

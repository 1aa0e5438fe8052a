"""The models and losses by name.

Imports neither torch nor the models and losses: a built-in one is entered by its place, and its module is
imported when it is made.
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
"""The models by name: functions (shape of an input, number of outputs) → module, or their places."""


@dataclass(frozen=True)
class Loss:
    """A loss by name."""

    make: Place | Callable[[], Any]
    """function () → `OutputLoss`, or its place"""
    chance: Callable[[int], float] | None = None
    """number of classes → loss of guessing, the value of a diverged trial; None if guessing has no loss"""
    unit: str = "mean loss"
    short: str = "loss"
    """the unit in one word"""
    classes: bool = True
    """whether targets are classes instead of numbers"""
    distribution: bool = False
    """whether it is a negative log-likelihood of a known distribution, and so has a Fisher matrix"""


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
    """Make a model in evaluation mode: the loss of an example depends on the parameters and it alone.

    A task uses the model's function and the shapes of its parameters, and never its weights.
    """
    made: nn.Module = found(MODELS[name])(shape, classes)
    return made.eval()


def make_loss(name: str) -> OutputLoss:
    """Make a loss."""
    made: OutputLoss = found(LOSSES[name].make)()
    return made


def describe(entry: Place | Callable[..., Any]) -> str:
    """Return the first line of the docstring of a model or loss."""
    return inspect.cleandoc(found(entry).__doc__ or "a plug-in's own").partition("\n")[0]


def found(entry: Place | Callable[..., Any]) -> Callable[..., Any]:
    """Return a registered function or class, after importing its module."""
    return pkgutil.resolve_name(entry) if isinstance(entry, str) else entry

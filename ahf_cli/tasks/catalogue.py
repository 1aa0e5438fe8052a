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

GLOROT = "ahf_cli.tasks.initial:glorot_uniform"
SPARSE = "ahf_cli.tasks.initial:sparse"
ORTHOGONAL = "ahf_cli.tasks.initial:orthogonal"


@dataclass(frozen=True)
class Model:
    """A model by name, with its initial weights and its kind of inputs."""

    make: Place | Callable[[tuple[int, ...], int], Any]
    """function (shape of an input, number of outputs) → module, or its place"""
    initial: Place = GLOROT
    """place of the function (layout, seed, scales of normalisation layers) → weights (P,)"""
    axes: int | None = None
    """number of axes of an input: 1 for points, 2 for sequences, 3 for images; None: any"""
    mirrors: bool = False
    """whether it has as many outputs as an input has numbers"""
    states: bool = False
    """whether it gives its hidden states, by `with_states`"""
    only: str = ""
    """name of the only data set of a fit; empty: any data set"""
    symbols: bool | None = False
    """whether an input is made of symbols, integers in [0, outputs); None: any input"""

    def misfit(self, shape: tuple[int, ...], outputs: int, symbols: bool = False) -> str | None:
        """Return the rule that a data set breaks; None if inputs and outputs suit the model."""
        if self.symbols is not None and self.symbols != symbols:
            named = ("numbers", "symbols")
            return f"takes {named[self.symbols]}, and an input has {named[symbols]}"
        if self.axes is not None and len(shape) != self.axes:
            kinds = {
                1: "points (coordinates)",
                2: "sequences (steps, channels)",
                3: "images (channels, height, width)",
            }
            return f"takes {kinds[self.axes]}, and an input has the shape {shape}"
        if self.mirrors and outputs != math.prod(shape):
            return f"returns as many numbers as an input has ({math.prod(shape)}), and a target has {outputs}"
        return None


MODELS: dict[str, Model] = {
    "lenet": Model("ahf_cli.tasks.models:lenet", axes=3),
    "mlp": Model("ahf_cli.tasks.models:mlp"),
    "net3c3d": Model("ahf_cli.tasks.models:net3c3d", axes=3),
    "alexnet_small": Model("ahf_cli.tasks.models:alexnet_small", axes=3),
    "resnet34": Model("ahf_cli.tasks.models:resnet34", axes=3),
    **{
        name: Model(f"ahf_cli.tasks.models:{name}", axes=1)
        for name in ("tanh_64", "tanh_64_64_48_48", "tanh_256_256_128_128", "sine_64", "softplus_64")
    },
    "autoencoder_curves": Model("ahf_cli.tasks.autoencoders:autoencoder_curves", SPARSE, mirrors=True),
    "autoencoder_digits": Model("ahf_cli.tasks.autoencoders:autoencoder_digits", SPARSE, mirrors=True),
    "rnn_100": Model(
        "ahf_cli.tasks.recurrent:rnn_100", "ahf_cli.tasks.recurrent:sparse_rnn", axes=2, states=True
    ),
    "rnn_100_orthogonal": Model(
        "ahf_cli.tasks.recurrent:rnn_100_orthogonal", ORTHOGONAL, axes=2, states=True
    ),
    **{
        name: Model(
            f"ahf_cli.tasks.fits:{name}.model", f"ahf_cli.tasks.fits:{name}.initial", axes=1, only=name
        )
        for name in ("rosenbrock", "lanczos", "predator_prey")
    },
    **{
        f"transformer_{width}": Model(
            f"ahf_cli.tasks.language:transformer_{width}",
            "ahf_cli.tasks.language:transformer_weights",
            axes=1,
            symbols=True,
        )
        for width in (128, 64, 32)
    },
}
"""The models by name; plug-ins add theirs."""


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
    squares: bool = False
    """whether it is a sum of squares of residuals that are linear in the outputs"""
    equation: bool = False
    """whether it is for the residuals of an equation"""
    distribution: bool = False
    """whether it is a negative log-likelihood of a known distribution, and so has a Fisher matrix"""


LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(
        "ahf_cli.optim.losses:SoftmaxCrossEntropy", math.log, "mean cross-entropy, nats", "nats",
        distribution=True,
    ),
    "squared_error": Loss(
        "ahf_cli.optim.losses:SquaredError", None, "mean sum of squared errors",
        "squared error", classes=False, squares=True,
    ),
    "least_squares": Loss(
        "ahf_cli.optim.losses:LeastSquares", None, "half the mean of squared residuals, summed over terms",
        "residual", classes=False, squares=True, equation=True,
    ),
    "pixel_cross_entropy": Loss(
        "ahf_cli.optim.losses:PixelCrossEntropy", None, "mean sum of cross-entropies, nats", "nats",
        classes=False, distribution=True,
    ),
}  # fmt: skip
"""The losses by name."""


def make_model(name: str, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Make a model in evaluation mode: the loss of an example depends on the parameters and it alone.

    A task uses the model's function and the shapes of its parameters, and never its weights.
    """
    made: nn.Module = found(MODELS[name].make)(shape, classes)
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

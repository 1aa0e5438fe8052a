"""The data sets by name: their files with digests, their sources and their readers.

Imports neither torch nor NumPy: the module of a reader is imported when a data set is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ahf_cli.errors import InputError
from ahf_cli.recipes.hyperparameters import nearest
from ahf_cli.tasks.catalogue import Place, found

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Arrays = tuple[Array, Array, Array, Array]
    """training inputs (N, *shape), their targets (N, …), test inputs, their targets"""


@dataclass(frozen=True)
class DataSet:
    """Examples with targets, classes or numbers: an official training set and a test set."""

    name: str
    title: str
    """name in messages and reports"""
    classes: int | None
    """number of classes; None if targets are numbers"""
    shape: tuple[int, ...]
    """shape of an input"""
    training: int
    """number of official training examples"""
    reader: Place | Callable[[Path], Arrays]
    """function folder → arrays, which reads verified files"""
    files: Mapping[str, str] = field(default_factory=dict)
    """file name → SHA-256; empty if the reader makes the examples"""
    unpacked: bool = False
    """whether digests are of the unpacked content (`zcat FILE | sha256sum`) instead of the files"""
    torchvision: str = ""
    """name of torchvision's class, which downloads the files"""
    debian: str = ""
    """name of Debian's package of the files"""
    installed: str = ""
    """folder under /usr that the package fills; empty: share/datasets and the data set's own folder"""
    target: tuple[int, ...] = ()
    """shape of a target; () for one class"""
    metrics: tuple[str, ...] = ("accuracy",)
    """names of the metrics beside the loss"""
    losses: tuple[str, ...] = ()
    """names of the losses whose outputs the metrics take; empty: any for its kind of targets"""
    files_of: str = ""
    """name of the data set whose files it reads; empty: its own"""
    equation: bool = False
    """whether the reader is a function () → `Equation`, whose points are the examples"""
    fresh: bool = False
    """whether each step draws new points of the equation"""
    model: str = ""
    """name of the only model of a fit, whose examples serve all three sets; empty: any model"""
    symbols: bool = False
    """whether an input is made of symbols, integers in [0, classes)"""
    validation: int | None = None
    """number of the last training examples that validate, in the split `paper`; None: a drawn sixth"""

    @property
    def folder(self) -> str:
        """Name of its folder in a cache."""
        return (self.files_of or self.name).replace("_", "-")

    @property
    def outputs(self) -> int:
        """Length of a model's output for one input, or for one position of it."""
        return math.prod(self.target) if self.classes is None else self.classes

    def read(self, folder: Path) -> Arrays:
        """Return the arrays in a folder's files; the files are not verified, and the arrays not checked."""
        arrays: Arrays = found(self.reader)(folder)
        return arrays


_DIGITS = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz",
           "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")  # fmt: skip


def _named(*digests: str) -> dict[str, str]:
    return dict(zip(_DIGITS, digests, strict=True))


def of_equation(
    name: str, title: str, dimension: int, points: int, reader: Callable[..., Any] | None = None,
    fresh: bool = False,
) -> DataSet:  # fmt: skip
    """Return the data set of an equation; its reader is by default in `ahf_cli.tasks.poisson`."""
    return DataSet(
        name, title, None, (dimension,), points, reader or f"ahf_cli.tasks.poisson:{name}", target=(1,),
        metrics=("error",), losses=("least_squares",), equation=True, fresh=fresh,
    )  # fmt: skip


DATA_SETS: dict[str, DataSet] = {
    d.name: d
    for d in (
        # Digests of the unpacked content: Debian ships the same images as torchvision, but its archives carry
        # no file name and another time in the gzip header, so their own digests differ.
        DataSet(
            "fashion_mnist", "Fashion-MNIST", 10, (1, 28, 28), 60_000, "ahf_cli.tasks.data:read_digits",
            _named(
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
            unpacked=True, torchvision="FashionMNIST", debian="dataset-fashion-mnist",
        ),
        DataSet(
            "mnist", "MNIST", 10, (1, 28, 28), 60_000, "ahf_cli.tasks.data:read_digits",
            _named(
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
            torchvision="MNIST",
        ),
        DataSet(
            "cifar10", "CIFAR-10", 10, (3, 32, 32), 50_000, "ahf_cli.tasks.data:read_cifar10",
            {"cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"},
            torchvision="CIFAR10",
        ),
        DataSet(
            "cifar100", "CIFAR-100", 100, (3, 32, 32), 50_000, "ahf_cli.tasks.data:read_cifar100",
            {"cifar-100-python.tar.gz": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"},
            torchvision="CIFAR100",
        ),
        of_equation("poisson2d_sin", "Poisson's equation, sines in 2 dimensions", 2, 1020),
        of_equation("poisson2d_cos", "Poisson's equation, cosines in 2 dimensions", 2, 1020),
        of_equation("poisson5d_cos", "Poisson's equation, cosines in 5 dimensions", 5, 3500, fresh=True),
        of_equation("heat1d", "heat equation in 1 dimension", 2, 1020),
    )
}  # fmt: skip
"""The data sets by name; plug-ins add theirs."""


def _sequences(
    problem: str, title: str, steps: int, channels: int, training: int = 20_000, classes: int | None = None,
    target: tuple[int, ...] = (), metric: str = "wrong", loss: str = "cross_entropy",
) -> DataSet:  # fmt: skip
    """Return a problem of memory over many steps."""

    def read(folder: Path) -> Arrays:
        arrays: Arrays = found("ahf_cli.tasks.recurrent:sequences")(problem, steps)
        return arrays

    return DataSet(
        f"{problem}_{steps}", f"{title} over {steps} steps", classes, (steps, channels), training, read,
        target=target, metrics=(metric,), losses=(loss,),
    )  # fmt: skip


_PIXELS: Mapping[str, Any] = {
    "classes": None, "target": (784,), "metrics": ("image_error",), "losses": ("pixel_cross_entropy",)
}  # fmt: skip
_NUMBER: Mapping[str, Any] = {"target": (1,), "metric": "failures", "loss": "squared_error"}
_BITS: Mapping[str, Any] = {"metric": "wrong_bits", "loss": "pixel_cross_entropy"}

DATA_SETS |= {
    d.name: d
    for d in (
        DataSet(
            "curves", shape=(784,), training=20_000, title="Drawn curves",
            reader="ahf_cli.tasks.autoencoders:curves", **_PIXELS,
        ),
        replace(
            DATA_SETS["fashion_mnist"], name="fashion_autoencoder", title="Pixels of Fashion-MNIST",
            reader="ahf_cli.tasks.autoencoders:read_pixels", files_of="fashion_mnist", **_PIXELS,
        ),
        *(_sequences("addition", "Sum of two marked numbers", steps, 2, **_NUMBER) for steps in (50, 100)),
        _sequences("multiplication", "Product of two marked numbers", 50, 2, **_NUMBER),
        _sequences("xor", "Exclusive or of two marked bits", 50, 2, target=(1,), **_BITS),
        _sequences("temporal_order", "Order of two symbols", 50, 6, classes=4),
        _sequences("temporal_order_3", "Order of three symbols", 50, 6, classes=8),
        _sequences("random_permutation", "First of many random symbols", 50, 100, 10_000, classes=2),
        _sequences("memorization", "Five bits", 50, 4, 1_920, target=(5,), **_BITS),
        # Of the 34,409 windows the first 90 % train, the next 5 % validate, and the last 5 % test.
        DataSet(
            "bible", "King James Bible", 73, (128,), 32_688, "ahf_cli.tasks.language:read_bible",
            {"bible.data": "6c746c2acc8a34bfded980883ff1701a5d68934a1c853ebf88a07b978fe0ae0e"},
            debian="bible-kjv-text", installed="lib", target=(128,), metrics=("bits_per_character",),
            losses=("cross_entropy",), symbols=True, validation=1_720,
        ),
    )
}  # fmt: skip


def _fit(name: str, title: str, residuals: int) -> DataSet:
    """Return a least-squares fit; the model of its name is the vector of parameters."""
    return DataSet(
        name, title, None, (1,), residuals, f"ahf_cli.tasks.fits:{name}.read", target=(1,),
        metrics=("distance",), losses=("least_squares",), model=name,
    )  # fmt: skip


DATA_SETS |= {
    d.name: d
    for d in (
        _fit("rosenbrock", "Rosenbrock's function", 2),
        _fit("lanczos", "Sum of three exponentials", 24),
        _fit("predator_prey", "Rates of predators and prey", 50),
    )
}


def find(name: str) -> DataSet:
    """Return the data set of a name; raises InputError with the nearest known name."""
    if name not in DATA_SETS:
        raise InputError(f"unknown data set {name!r}{nearest(name, DATA_SETS, pluggable=True)}")
    return DATA_SETS[name]


def validation_size(training: int, last: int | None = None) -> int:
    """Number of training examples that validate, in the split `paper`: `last`, by default a sixth."""
    return training // 6 if last is None else last


def training_size(name: str, split: str) -> int:
    """Number of examples that train, in a split of a data set."""
    data = DATA_SETS[name]
    own = split == "paper" and not (data.equation or data.model)
    return data.training - validation_size(data.training, data.validation) if own else data.training

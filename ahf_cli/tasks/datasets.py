"""The data sets by name: their files with digests, and how the files are read.

Imports neither torch nor NumPy: what reads is imported when a data set is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ahf_cli.errors import InputError

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Arrays = tuple[Array, Array, Array, Array]
    """training inputs (N, *shape), their labels (N,), test inputs, their labels"""


@dataclass(frozen=True)
class DataSet:
    """Examples with targets, classes or numbers: an official training set and a test set."""

    name: str
    title: str
    """as in texts"""
    classes: int | None
    """number of classes; None where targets are numbers"""
    shape: tuple[int, ...]
    """of an input"""
    training: int
    """number of official training examples"""
    read: Callable[[Path], Arrays]
    """reads the verified files of a folder"""
    files: Mapping[str, str] = field(default_factory=dict)
    """file name → SHA-256; none where the examples are made, not read"""
    unpacked: bool = False
    """whether the digests are those of the unpacked content (`zcat FILE | sha256sum`), not of the files"""
    debian: str = ""
    """name of Debian's package of the files"""
    target: tuple[int, ...] = ()
    """shape of a target of numbers"""
    metrics: tuple[str, ...] = ("accuracy",)
    """names of the metrics beside the loss"""

    @property
    def folder(self) -> str:
        """Name of its folder in a cache."""
        return self.name.replace("_", "-")

    @property
    def outputs(self) -> int:
        """Numbers that a model maps an input to."""
        return math.prod(self.target) if self.classes is None else self.classes


def _idx(folder: Path) -> Arrays:
    from ahf_cli.tasks.readers import idx

    return idx(folder, (28, 28))


def _cifar(folder: Path, archive: str, labels: str, train: Sequence[str], test: str) -> Arrays:
    from ahf_cli.tasks.readers import cifar

    return cifar(folder, archive, labels, train, test)


_DIGITS = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz",
           "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")  # fmt: skip


def _named(*digests: str) -> dict[str, str]:
    return dict(zip(_DIGITS, digests, strict=True))


DATA_SETS: dict[str, DataSet] = {
    d.name: d
    for d in (
        # Digests of the unpacked content: Debian ships the same images as torchvision, but its archives carry
        # no file name and another time in the gzip header, so their own digests differ.
        DataSet(
            "fashion_mnist", "Fashion-MNIST", 10, (1, 28, 28), 60_000, _idx,
            _named(
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
            unpacked=True, debian="dataset-fashion-mnist",
        ),
        DataSet(
            "mnist", "MNIST", 10, (1, 28, 28), 60_000, _idx,
            _named(
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
        ),
        DataSet(
            "cifar10", "CIFAR-10", 10, (3, 32, 32), 50_000,
            partial(
                _cifar, archive="cifar-10-python.tar.gz", labels="labels",
                test="cifar-10-batches-py/test_batch",
                train=tuple(f"cifar-10-batches-py/data_batch_{n}" for n in range(1, 6)),
            ),
            {"cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"},
        ),
        DataSet(
            "cifar100", "CIFAR-100", 100, (3, 32, 32), 50_000,
            partial(
                _cifar, archive="cifar-100-python.tar.gz", labels="fine_labels", test="cifar-100-python/test",
                train=("cifar-100-python/train",),
            ),
            {"cifar-100-python.tar.gz": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"},
        ),
    )
}  # fmt: skip
"""The data sets by name; plug-ins add theirs."""


def validation_size(training: int) -> int:
    """Number of the official training examples that validate, in the split `paper`: a sixth."""
    return training // 6


def training_size(name: str, split: str) -> int:
    """Number of examples that train, in a split of a data set."""
    whole = DATA_SETS[name].training
    return whole - validation_size(whole) if split == "paper" else whole


def _check_targets(data: DataSet, what: str, count: int, targets: Array) -> None:
    """Raise InputError where targets are not those of the data set."""
    import numpy as np

    if data.classes is None:
        shape = (count, *data.target)
        if targets.shape != shape or targets.dtype.kind != "f" or not count:
            raise InputError(
                f"{what}targets must be floating-point numbers of shape {shape}, "
                f"found {targets.dtype} of shape {targets.shape}"
            )
        if not np.isfinite(targets).all():
            raise InputError(f"{what}targets must be finite")
        return
    if targets.shape != (count,) or targets.dtype.kind not in "iu":
        raise InputError(f"{what}set must have one integer label an input, found shape {targets.shape}")
    if count == 0 or targets.min() < 0 or targets.max() >= data.classes:
        raise InputError(f"{what}labels must be in [0, {data.classes}), and there must be some")


def checked(data: DataSet, arrays: Arrays) -> Arrays:
    """Return a data set's arrays, or raise InputError where they are not what it says of itself."""
    import numpy as np

    if len(arrays) != 4 or not all(isinstance(array, np.ndarray) for array in arrays):
        raise InputError(f"data set {data.name}: must be four NumPy arrays, found {len(arrays)} values")
    x, y, x_test, y_test = arrays
    for name, inputs, labels in (("training", x, y), ("test", x_test, y_test)):
        what = f"data set {data.name}: the {name} "
        if inputs.shape[1:] != data.shape:
            raise InputError(f"{what}inputs must have shape {data.shape}, found {inputs.shape[1:]}")
        if inputs.dtype not in ("uint8", "float16", "float32", "float64"):
            raise InputError(f"{what}inputs must be bytes or floating-point numbers, found {inputs.dtype}")
        if inputs.dtype.kind == "f" and not np.isfinite(inputs).all():
            raise InputError(f"{what}inputs must be finite, and {int((~np.isfinite(inputs)).sum())} are not")
        _check_targets(data, what, len(inputs), labels)
    if len(x) != data.training:
        raise InputError(f"data set {data.name}: must have {data.training} training examples, found {len(x)}")
    return arrays

"""A data set as tensors: the official sets, and the split into training, validation and test examples.

Importing this module does not import torch; `load` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from ahf_cli.errors import InputError
from ahf_cli.tasks.datasets import DATA_SETS, DataSet, checked, validation_size
from ahf_cli.tasks.sources import digests, fetch, locate, verify

if TYPE_CHECKING:
    import torch

    from ahf_cli.tasks.datasets import Array

__all__ = ["LabelledImages", "Split", "SplitName", "digests", "fetch", "load", "locate", "verify"]

SplitName = Literal["paper", "full"]
SPLIT_SEED = 0


@dataclass(frozen=True)
class LabelledImages:
    """Inputs, mostly images, with their targets; pixels stay bytes, to be divided by 255 batch by batch."""

    images: torch.Tensor  # (N, *shape) uint8, or floating point
    labels: torch.Tensor  # (N,) int64, 0 … classes − 1, or (N, …) floating point

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> LabelledImages:
        """Return the same images on a device."""
        return LabelledImages(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Split:
    """Training, validation and test images; no validation set in the split `full`."""

    train: LabelledImages
    validation: LabelledImages | None
    test: LabelledImages
    outputs: int = 10
    """numbers that a model maps an input to: the classes, or the entries of a target"""
    metrics: tuple[str, ...] = ("accuracy",)
    """names of the metrics beside the loss"""


def _select(images: Array, labels: Array, rows: npt.NDArray[np.int64]) -> LabelledImages:
    import torch

    own = labels[rows] if labels.dtype.kind == "f" else labels[rows].astype(np.int64)
    return LabelledImages(torch.from_numpy(images[rows]), torch.from_numpy(own))


def split_rows(count: int, split: SplitName) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
    """Return the rows of `count` official training images that train, and those that validate.

    `paper` keeps a sixth for validation, chosen by one fixed permutation; `full` keeps none.
    """
    if split == "full":
        return np.arange(count), None
    order = np.random.default_rng(SPLIT_SEED).permutation(count)
    cut = count - validation_size(count)
    return order[:cut], order[cut:]


def load(
    folder: Path | None, split: SplitName, subset: int | None = None, data: DataSet | None = None
) -> Split:
    """Read a data set from the verified files of a folder, as a `paper` or `full` split.

    The split `paper` of Fashion-MNIST, which is read unless another is given, has 50,000, 10,000 and 10,000
    examples.  `subset=n` keeps the first n of each set, or the whole set where it has fewer.  A data set
    without files needs no folder.
    """
    data = data or DATA_SETS["fashion_mnist"]
    if split not in get_args(SplitName):
        raise InputError(f"split must be one of {', '.join(get_args(SplitName))}, got {split!r}")
    if subset is not None and not 1 <= subset <= data.training:
        raise InputError(f"subset must be in [1, {data.training}], got {subset!r}")
    if folder is not None:
        verify(folder, data)
    images, labels, test_images, test_labels = checked(data, data.read(folder or Path()))
    train, validation = split_rows(len(images), split)
    return Split(
        _select(images, labels, train[:subset]),
        None if validation is None else _select(images, labels, validation[:subset]),
        _select(test_images, test_labels, np.arange(len(test_images))[:subset]),
        data.outputs,
        data.metrics,
    )

"""Fashion-MNIST as tensors: the official sets, and the split into training, validation and test images.

Importing this module does not import torch; `load` does.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from ahf_cli.errors import InputError
from ahf_cli.tasks.sources import FILES, digests, fetch, locate, verify

if TYPE_CHECKING:
    import torch

__all__ = ["FILES", "LabelledImages", "Split", "SplitName", "digests", "fetch", "load", "locate", "verify"]

SplitName = Literal["paper", "full"]
SPLIT_SEED = 0
TRAINING_IMAGES = 60_000
SIDE = 28
"""height and width of an image, in pixels"""

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class LabelledImages:
    """Images with their classes; pixels stay bytes, to be divided by 255 batch by batch."""

    images: torch.Tensor  # (N, 1, 28, 28) uint8
    labels: torch.Tensor  # (N,) int64, 0 … 9

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
    classes: int = 10


def read_idx(path: Path, item_shape: tuple[int, ...]) -> Bytes:
    """Return the unsigned bytes (N, *item_shape) of a gzipped IDX file; InputError where it is none."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} must be a gzip file: {error}") from None
    rank = 1 + len(item_shape)
    header = 4 + 4 * rank
    magic = bytes((0, 0, 8, rank))  # two zeros, 8 = unsigned byte, number of dimensions
    if content[:4] != magic or len(content) < header:
        raise InputError(f"{path} must start with the IDX magic {magic.hex()}, found {content[:4].hex()}")
    shape = struct.unpack(f">{rank}I", content[4:header])
    if shape[1:] != item_shape:
        raise InputError(f"{path} must hold items of shape {item_shape}, found {shape[1:]}")
    if len(content) - header != math.prod(shape):
        raise InputError(f"{path} must hold {math.prod(shape)} bytes of data, found {len(content) - header}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _read_set(folder: Path, prefix: str) -> tuple[Bytes, Bytes]:
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", (SIDE, SIDE))
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", ())
    if len(images) != len(labels):
        raise InputError(
            f"{folder}: {prefix} must have one label an image, found {len(images)} and {len(labels)}"
        )
    return images, labels


def _select(images: Bytes, labels: Bytes, rows: npt.NDArray[np.int64]) -> LabelledImages:
    import torch

    return LabelledImages(
        torch.from_numpy(images[rows, None]), torch.from_numpy(labels[rows].astype(np.int64))
    )


def split_rows(count: int, split: SplitName) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
    """Return the rows of `count` official training images that train, and those that validate.

    `paper` keeps a sixth for validation, chosen by one fixed permutation; `full` keeps none.
    """
    if split == "full":
        return np.arange(count), None
    order = np.random.default_rng(SPLIT_SEED).permutation(count)
    return order[: count - count // 6], order[count - count // 6 :]


def load(folder: Path, split: SplitName, subset: int | None = None) -> Split:
    """Read the four files of a folder, verified, as a `paper` (50,000 / 10,000 / 10,000) or `full` split.

    `subset=n` keeps the first n images of each set, or the whole set where it has fewer.
    """
    if split not in get_args(SplitName):
        raise InputError(f"split must be one of {', '.join(get_args(SplitName))}, got {split!r}")
    if subset is not None and not 1 <= subset <= TRAINING_IMAGES:
        raise InputError(f"subset must be in [1, {TRAINING_IMAGES}], got {subset!r}")
    verify(folder)
    training, test = _read_set(folder, "train"), _read_set(folder, "t10k")
    train, validation = split_rows(len(training[0]), split)
    return Split(
        _select(*training, train[:subset]),
        None if validation is None else _select(*training, validation[:subset]),
        _select(*test, np.arange(len(test[0]))[:subset]),
    )

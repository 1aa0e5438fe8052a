"""The data of a data set: read from its files, checked, and split into examples of three sets.

Importing this module does not import torch; `load` does.
"""

from __future__ import annotations

import gzip
import io
import math
import pickle
import struct
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ahf_cli.errors import InputError
from ahf_cli.tasks.catalogue import found
from ahf_cli.tasks.datasets import DATA_SETS, DataSet, validation_size
from ahf_cli.tasks.folder import verify

if TYPE_CHECKING:
    import torch

    from ahf_cli.tasks.datasets import Array, Arrays

SplitName = Literal["paper", "full"]
SPLIT_SEED = 0
Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LabelledImages:
    """Inputs, mostly images, and their targets; pixels stay bytes, and a task divides each batch by 255."""

    images: torch.Tensor
    """(N, *shape) uint8, or floating point, or symbols as int64"""
    labels: torch.Tensor
    """(N, …) int64 in [0, classes), or numbers (N, …) as uint8 or floating point"""

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> LabelledImages:
        """Return the same examples on a device."""
        return LabelledImages(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Split:
    """Training, validation and test examples; the split `full` has no validation set."""

    train: LabelledImages
    validation: LabelledImages | None
    test: LabelledImages
    outputs: int = 10
    """length of a model's output: number of classes, or of entries in a target"""
    metrics: tuple[str, ...] = ("accuracy",)
    """names of the metrics beside the loss"""
    equation: str | None = None
    """name of the equation whose points these are"""


def load(
    folder: Path | None, split: SplitName, subset: int | None = None, data: DataSet | None = None
) -> Split:
    """Return a split of a data set, after verifying its files and checking its arrays.

    The split `paper` of Fashion-MNIST has 50,000, 10,000 and 10,000 examples.

    Args:
        folder: folder of the files; None for a data set without files.
        split: `paper` or `full`.
        subset: number of examples to keep from the beginning of each set; all by default.
        data: data set; Fashion-MNIST by default.

    Raises:
        InputError: an argument is out of range, files are damaged, or arrays break the declaration.
    """
    data = data or DATA_SETS["fashion_mnist"]
    if split not in get_args(SplitName):
        raise InputError(f"split must be one of {', '.join(get_args(SplitName))}, got {split!r}")
    if subset is not None and not 1 <= subset <= data.training:
        raise InputError(f"subset must be in [1, {data.training}], got {subset!r}")
    if data.equation:
        points: Split = found("ahf_cli.tasks.equations:split")(data, split)
        return points
    if folder is not None:
        verify(folder, data)
    images, labels, test_images, test_labels = checked(data, data.read(folder or Path()))
    train, validation = split_rows(len(images), "full" if data.model else split, data.validation)
    if data.model and split == "paper":  # a fit has no other examples
        validation = train
    classes = data.classes is not None
    return Split(
        _select(images, labels, train[:subset], classes),
        None if validation is None else _select(images, labels, validation[:subset], classes),
        _select(test_images, test_labels, np.arange(len(test_images))[:subset], classes),
        data.outputs,
        data.metrics,
    )


def split_rows(
    count: int, split: SplitName, last: int | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
    """Return the rows of training and of validation examples among `count` official training examples.

    In the split `paper` the `last` rows validate; by default a fixed permutation chooses a sixth.  The split
    `full` has no validation rows.
    """
    if split == "full":
        return np.arange(count), None
    order = np.random.default_rng(SPLIT_SEED).permutation(count) if last is None else np.arange(count)
    cut = count - validation_size(count, last)
    return order[:cut], order[cut:]


def _select(images: Array, labels: Array, rows: npt.NDArray[np.int64], classes: bool) -> LabelledImages:
    import torch

    own = labels[rows].astype(np.int64) if classes else labels[rows]
    return LabelledImages(torch.from_numpy(images[rows]), torch.from_numpy(own))


def _check_targets(data: DataSet, what: str, count: int, targets: Array) -> None:
    """Raise InputError if targets break the declaration of the data set."""
    if data.classes is None:
        shape = (count, *data.target)
        if targets.shape != shape or (targets.dtype.kind != "f" and targets.dtype != "uint8") or not count:
            raise InputError(
                f"{what}targets must be floating-point numbers or bytes of shape {shape}, "
                f"found {targets.dtype} of shape {targets.shape}"
            )
        if not np.isfinite(targets).all():
            raise InputError(
                f"{what}targets must be finite, and {int((~np.isfinite(targets)).sum())} are not"
            )
        return
    if targets.shape != (count, *data.target) or targets.dtype.kind not in "iu":
        each = f"{data.target} integer labels" if data.target else "one integer label"
        raise InputError(
            f"{what}set must have {each} per input, found {targets.dtype} of shape {targets.shape}"
        )
    if not count:
        raise InputError(f"{what}set must have examples, found none")
    if targets.min() < 0 or targets.max() >= data.classes:
        raise InputError(
            f"{what}labels must be in [0, {data.classes}), found {targets.min()} to {targets.max()}"
        )


def _check_symbols(data: DataSet, what: str, inputs: Array) -> None:
    """Raise InputError if inputs are not integers in [0, classes)."""
    assert data.classes is not None
    if inputs.dtype != "int64":
        raise InputError(f"{what}inputs must be symbols as int64, found {inputs.dtype}")
    if inputs.size and not 0 <= inputs.min() <= inputs.max() < data.classes:
        raise InputError(
            f"{what}symbols must be in [0, {data.classes}), found {inputs.min()} to {inputs.max()}"
        )


def checked(data: DataSet, arrays: Arrays) -> Arrays:
    """Return a data set's arrays; raises InputError if they break its declaration."""
    if len(arrays) != 4 or not all(isinstance(array, np.ndarray) for array in arrays):
        raise InputError(f"data set {data.name}: must be four NumPy arrays, found {len(arrays)} values")
    x, y, x_test, y_test = arrays
    for name, inputs, labels in (("training", x, y), ("test", x_test, y_test)):
        what = f"data set {data.name}: the {name} "
        if inputs.shape[1:] != data.shape:
            raise InputError(f"{what}inputs must have shape {data.shape}, found {inputs.shape[1:]}")
        if data.symbols:
            _check_symbols(data, what, inputs)
        elif inputs.dtype not in ("uint8", "float16", "float32", "float64"):
            raise InputError(f"{what}inputs must be bytes or floating-point numbers, found {inputs.dtype}")
        if inputs.dtype.kind == "f" and not np.isfinite(inputs).all():
            raise InputError(f"{what}inputs must be finite, and {int((~np.isfinite(inputs)).sum())} are not")
        _check_targets(data, what, len(inputs), labels)
    if len(x) != data.training:
        raise InputError(f"data set {data.name}: must have {data.training} training examples, found {len(x)}")
    return arrays


# torchvision.datasets is no replacement: it reads unpacked files only, 186 MB on disk for CIFAR, and it
# unpickles CIFAR without restriction.  Its import costs each worker process about 2 s and 160 MB of memory.


def read_idx(path: Path, item_shape: tuple[int, ...]) -> Bytes:
    """Return the unsigned bytes (N, *item_shape) in a gzipped IDX file; raises InputError for other files."""
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


def read_digits(folder: Path) -> Arrays:
    """Return the images (N, 1, 28, 28) and labels (N,) in the four files of MNIST or a relative of it."""
    return *_digits(folder, "train"), *_digits(folder, "t10k")


def _digits(folder: Path, prefix: str) -> tuple[Bytes, Labels]:
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", (28, 28))
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", ())
    if len(images) != len(labels):
        raise InputError(
            f"{folder}: {prefix} must have one label per image, found {len(images)} and {len(labels)}"
        )
    return images[:, None], labels.astype(np.int64)


def read_cifar10(folder: Path) -> Arrays:
    """Return the images (N, 3, 32, 32) and labels (N,) in the archive of CIFAR-10."""
    train = [f"cifar-10-batches-py/data_batch_{n}" for n in range(1, 6)]
    return _cifar(folder / "cifar-10-python.tar.gz", "labels", train, "cifar-10-batches-py/test_batch")


def read_cifar100(folder: Path) -> Arrays:
    """Return the images (N, 3, 32, 32) and fine labels (N,) in the archive of CIFAR-100."""
    train = ["cifar-100-python/train"]
    return _cifar(folder / "cifar-100-python.tar.gz", "fine_labels", train, "cifar-100-python/test")


def _cifar(path: Path, labels: str, train: Sequence[str], test: str) -> Arrays:
    """Read the pickles in an archive, which stays packed."""
    try:
        with tarfile.open(path) as opened:
            batches = [_batch(opened, path, member, labels) for member in (*train, test)]
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise InputError(f"{path} must be a gzipped tar archive: {error}") from None
    images, classes = zip(*batches[:-1], strict=True)
    return np.concatenate(images), np.concatenate(classes), *batches[-1]


def _batch(opened: tarfile.TarFile, path: Path, member: str, labels: str) -> tuple[Bytes, Labels]:
    try:
        stream = opened.extractfile(member)
    except KeyError:
        raise InputError(f"{path} must hold {member}") from None
    content = b"" if stream is None else stream.read()
    try:
        found = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
        images, classes = np.asarray(found["data"], np.uint8), np.asarray(found[labels], np.int64)
        return images.reshape(len(classes), 3, 32, 32), classes
    except Exception as error:  # a pickle may raise any exception
        raise InputError(f"{path}: {member} must be a pickle of images and {labels}: {error}") from None


class _ArraysOnly(pickle.Unpickler):
    """Reader of pickles of plain data and NumPy arrays; another pickle could run code, and is refused."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
        }
    )  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        """Return a function or type that makes arrays; raises UnpicklingError for every other name."""
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")
        module = module.replace("numpy.core.", "numpy._core.")  # its name since NumPy 2
        return super().find_class(module, name)

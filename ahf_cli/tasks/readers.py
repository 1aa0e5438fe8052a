"""Files of images as arrays: IDX, and CIFAR's archives."""

from __future__ import annotations

import gzip
import io
import math
import pickle
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ahf_cli.errors import InputError

Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Sets = tuple[Bytes, Labels, Bytes, Labels]


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


def idx(folder: Path, shape: tuple[int, int]) -> Sets:
    """Read the four files of MNIST or its relatives; images get a channel."""
    return *_idx_set(folder, "train", shape), *_idx_set(folder, "t10k", shape)


def _idx_set(folder: Path, prefix: str, shape: tuple[int, int]) -> tuple[Bytes, Labels]:
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", shape)
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", ())
    if len(images) != len(labels):
        raise InputError(
            f"{folder}: {prefix} must have one label an image, found {len(images)} and {len(labels)}"
        )
    return images[:, None], labels.astype(np.int64)


class _ArraysOnly(pickle.Unpickler):
    """Reads pickles of plain data and NumPy arrays, and refuses all else: a pickle can run any code."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
        }
    )  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the few functions and types that make arrays."""
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")
        module = module.replace("numpy.core.", "numpy._core.")  # its name since NumPy 2
        return super().find_class(module, name)


def cifar(folder: Path, archive: str, labels: str, train: Sequence[str], test: str) -> Sets:
    """Read CIFAR's images (N, 3, 32, 32) straight from its archive of pickles."""
    path = folder / archive
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
    except Exception as error:  # of a pickle anything may come
        raise InputError(f"{path}: {member} must be a pickle of images and {labels}: {error}") from None

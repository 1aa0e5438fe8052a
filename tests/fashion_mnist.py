"""A small data set in the files of Fashion-MNIST."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

from ahf_cli.tasks import folder as folders
from ahf_cli.tasks.datasets import DATA_SETS

FASHION = "fashion_mnist"


def system_folder() -> Path:
    """Return the folder of Debian's package."""
    return folders.system_folder(DATA_SETS[FASHION])


def idx(array: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    """Return an array as an IDX file."""
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def write(folder: Path, contents: dict[str, bytes]) -> Path:
    """Write the files, compressed, into a new folder."""
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(gzip.compress(content, 1, mtime=0))
    return folder

"""The folder of a data set's files: located, and verified against known digests."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from platformdirs import user_cache_dir

from ahf_cli.errors import InputError
from ahf_cli.tasks.datasets import DATA_SETS, DataSet

ENVIRONMENT = "AHF_DATA_DIR"
SYSTEM = Path("/usr")
"""folder that Debian's packages fill"""
SHOWN = 12
"""hexadecimal digits of a digest in a message"""


def cache_folder(data: DataSet) -> Path:
    """Return a data set's folder in the user's cache, by the XDG rules."""
    return Path(user_cache_dir("ahf", appauthor=False)) / data.folder


def system_folder(data: DataSet) -> Path:
    """Return the folder that Debian's package of a data set fills."""
    return SYSTEM / (data.installed or f"share/datasets/{data.folder}")


def missing(folder: Path, data: DataSet) -> list[str]:
    """Return the names of the data set's files that a folder lacks."""
    return [name for name in data.files if not (folder / name).is_file()]


@lru_cache(maxsize=64)
def _digest(path: Path, unpacked: bool, size: int, modified: int) -> tuple[str, str]:
    # Size and time of change are arguments only so that a file is read again after a change.
    digest = hashlib.sha256()
    try:
        with gzip.open(path) if unpacked else path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except (OSError, EOFError, zlib.error) as error:
        return digest.hexdigest(), f", {str(error).rstrip('.')}"
    return digest.hexdigest(), ""


def damage(path: Path, expected: str, unpacked: bool) -> str | None:
    """Return one line that describes a file's damage; None if its digest is the expected one."""
    status = path.stat()
    found, broken = _digest(path, unpacked, status.st_size, status.st_mtime_ns)
    if found == expected and not broken:
        return None
    what = "SHA-256 of its unpacked content" if unpacked else "its SHA-256"
    return (
        f"{path} is damaged: {what} must be {expected[:SHOWN]}…, "
        f"found {found[:SHOWN]}…{broken}; replace or delete it"
    )


def refuse_damaged(folder: Path, data: DataSet, names: Sequence[str]) -> None:
    """Raise InputError if some of a folder's files are damaged, with one line for each of them."""
    found = (damage(folder / name, data.files[name], data.unpacked) for name in names)
    if damaged := [line for line in found if line]:
        raise InputError(damaged)


def verify(folder: Path, data: DataSet) -> None:
    """Check that a folder holds all files of a data set with their known digests.

    Raises:
        InputError: the folder or a file is missing, or files are damaged; one line for each of them.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise InputError(f"data folder {folder} does not exist")
    if absent := missing(folder, data):
        count = f"the {len(data.files)} {data.title} files" if len(data.files) > 1 else f"{data.title}'s file"
        raise InputError(f"data folder {folder} must hold {count}; found no {', '.join(absent)}")
    refuse_damaged(folder, data, list(data.files))


def digests(folder: Path, data: DataSet) -> dict[str, str]:
    """Return the SHA-256 of every file, after `verify`; digests are equal for every source."""
    verify(folder, data)
    return dict(data.files)


def named_folder(data_dir: Path | None, data: DataSet) -> Path | None:
    """Return the folder that the option or the environment names; None if neither is set.

    A sub-folder with the data set's name goes first.  MNIST is always in such a sub-folder, because its files
    have the same names as Fashion-MNIST's files.
    """
    if data_dir is None and os.environ.get(ENVIRONMENT):
        data_dir = Path(os.environ[ENVIRONMENT])
    if data_dir is None:
        return None
    whole = data_dir.expanduser()
    own = whole / data.folder
    return own if own.is_dir() or data.name == "mnist" else whole


def complete_folder(data: DataSet) -> Path | None:
    """Return the first complete folder of cache and system, or None; raises InputError for a damaged file."""
    for folder in (cache_folder(data), system_folder(data)):
        if not missing(folder, data):
            verify(folder, data)
            return folder.resolve()
    return None


def locate(data_dir: Path | None = None, data: DataSet | None = None) -> Path:
    """Return the verified folder of a data set: `data_dir`, AHF_DATA_DIR, the cache or the system's folder.

    `data` is Fashion-MNIST by default.  A cache or system's folder that lacks a file is passed over.

    Raises:
        InputError: a named folder lacks a file, a file is damaged, or no folder holds all files.
    """
    data = data or DATA_SETS["fashion_mnist"]
    folder = named_folder(data_dir, data)
    if folder is not None:
        verify(folder, data)
        return folder.resolve()
    folder = complete_folder(data)
    if folder is None:
        also = f" nor in {system_folder(data)}" if data.debian else ""
        own = "" if data.name == "fashion_mnist" else f" {data.name}"
        raise InputError(
            f"{data.title} is {'neither' if also else 'not'} in {cache_folder(data)}{also}: "
            f"run `ahf data fetch{own}`, or set {ENVIRONMENT} to the folder that holds it"
        )
    return folder

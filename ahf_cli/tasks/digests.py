"""Whether a folder holds a data set's files, each as it is known."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from functools import lru_cache
from pathlib import Path

from ahf_cli.errors import InputError
from ahf_cli.tasks.datasets import DataSet

SHOWN = 12
"""hex digits of a digest in a message"""


def missing(folder: Path, data: DataSet) -> list[str]:
    """Return the names of the data set's files that a folder lacks."""
    return [name for name in data.files if not (folder / name).is_file()]


@lru_cache(maxsize=64)
def _digest(path: Path, unpacked: bool, size: int, modified: int) -> tuple[str, str]:
    # size and time of change are arguments only so that a file that was altered is read again
    digest = hashlib.sha256()
    try:
        with gzip.open(path) if unpacked else path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except (OSError, EOFError, zlib.error) as error:
        return digest.hexdigest(), f", {str(error).rstrip('.')}"
    return digest.hexdigest(), ""


def damage(path: Path, expected: str, unpacked: bool) -> str | None:
    """Say what is wrong with a file whose digest is known; None where nothing is."""
    status = path.stat()
    found, broken = _digest(path, unpacked, status.st_size, status.st_mtime_ns)
    if found == expected and not broken:
        return None
    what = "SHA-256 of its unpacked content" if unpacked else "its SHA-256"
    return (
        f"{path} is damaged: {what} must be {expected[:SHOWN]}…, "
        f"found {found[:SHOWN]}…{broken}; replace or delete it"
    )


def verify(folder: Path, data: DataSet) -> None:
    """Check that a folder holds all files of a data set, each as it is known; InputError names the bad."""
    folder = folder.resolve()
    if not folder.is_dir():
        raise InputError(f"data folder {folder} does not exist")
    if absent := missing(folder, data):
        count = f"the {len(data.files)} {data.title} files" if len(data.files) > 1 else f"{data.title}'s file"
        raise InputError(f"data folder {folder} must hold {count}; no {', '.join(absent)}")
    found = (damage(folder / name, digest, data.unpacked) for name, digest in data.files.items())
    if damaged := [line for line in found if line]:
        raise InputError(damaged)


def digests(folder: Path, data: DataSet) -> dict[str, str]:
    """Return the SHA-256 of every file, verified; the same whatever the source."""
    verify(folder, data)
    return dict(data.files)

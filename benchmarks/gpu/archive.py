"""The archive of a part: one file in place of its folder."""

from __future__ import annotations

import gzip
import sys
import tarfile
import zlib
from contextlib import suppress
from pathlib import Path
from shutil import rmtree

from ahf_cli.errors import InputError
from benchmarks.gpu.pack import MIB


def extract(archive: Path, work: Path) -> None:
    """Extract a part's archive, unless a killed run has left its folder.

    Raises:
        InputError: the archive is damaged.
    """
    if not work.exists() and archive.exists():
        fresh = work.with_name(f".{work.name}")
        rmtree(fresh, ignore_errors=True)
        try:
            with tarfile.open(archive, "r:gz") as tar:
                tar.extractall(fresh, filter="data")
        except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            rmtree(fresh, ignore_errors=True)
            raise InputError(
                f"{archive} is damaged ({error}): delete it, and its part begins again"
            ) from error
        fresh.rename(work)


def close(work: Path, archive: Path, limit: float) -> None:
    """Write a part's folder as one file, without checkpoints if it is too large, and delete the folder."""
    fresh = archive.with_name(f".{archive.name}")
    _write(work, fresh)
    if (size := fresh.stat().st_size / MIB) > limit and (found := list(work.rglob("checkpoint*"))):
        for path in found:
            path.unlink()
        _write(work, fresh)
        print(
            f"{archive.name} without checkpoints, whose trials start anew: with them {size:.1f} MiB, "
            f"--archive is {limit:g}",
            file=sys.stderr,
        )
    fresh.replace(archive)
    rmtree(work)
    with suppress(OSError):
        work.parent.rmdir()


def _write(work: Path, archive: Path) -> None:
    with tarfile.open(archive, "w:gz", compresslevel=6) as tar:
        for path in sorted(work.iterdir()):
            tar.add(path, path.name)

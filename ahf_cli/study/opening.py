"""Files of a study opened as data: regular files alone, no link followed, nothing above its bound."""

from __future__ import annotations

import json
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ahf_cli.errors import InputError

SMALL = 16 * 2**20
"""Bytes that a manifest, a configuration or a trial's record may have."""
LARGE = 512 * 2**20
"""Bytes that a table may have, on disk and unpacked."""


class DamagedError(InputError):
    """A file of a study is not as it was written; the line names it and says why."""

    def __init__(self, file: Path, why: str):
        self.file, self.why = file, why
        super().__init__(f"{file}: {why}")


def open_regular(file: Path) -> BinaryIO:
    """Open a regular file for reading; no link is followed, and no pipe is waited for.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: it is a link, a folder, a device or a pipe, or cannot be opened.
    """
    # Without O_NONBLOCK the opening of a pipe waits for a writer, for ever.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(file, flags)
    except NotADirectoryError as error:
        raise FileNotFoundError(error.errno, error.strerror, str(file)) from None
    except FileNotFoundError:
        raise
    except OSError as error:
        what = "is a link, and links are not followed" if file.is_symlink() else error.strerror or str(error)
        raise DamagedError(file, what) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedError(file, "must be a regular file")
    return open(descriptor, "rb")


def read(file: Path, limit: int = SMALL) -> bytes:
    """Return the content of a regular file.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: it is a link, a folder, a device or a pipe, has more than `limit` bytes, or cannot be
            read.
    """
    with open_regular(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > limit:
            raise DamagedError(file, f"must have at most {limit} bytes, got {size}")
        return stream.read(size)


def read_json(file: Path) -> Any:
    """Return the value in a JSON file; raises as `read` does, and DamagedError where it holds no JSON."""
    return as_json(file, read(file))


def as_json(file: Path, data: bytes) -> Any:
    """Return the value that a JSON file's content stands for.

    Raises:
        DamagedError: it is no JSON; lists nested by the thousand are none either.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DamagedError(file, f"must be JSON: {reason}") from None


def unzip(file: Path, data: bytes, limit: int = LARGE) -> bytes:
    """Return the content of a gzip file; no more than `limit` bytes are ever made.

    Raises:
        DamagedError: it is no gzip file, is cut short, or unpacks to more.
    """
    unpacker = zlib.decompressobj(wbits=31)
    try:
        content = unpacker.decompress(data, limit + 1)
    except zlib.error as error:
        raise DamagedError(file, f"must be a gzip file: {error}") from None
    if len(content) > limit:
        raise DamagedError(file, f"must unpack to at most {limit} bytes")
    if not unpacker.eof:
        raise DamagedError(file, "is cut short")
    return content


def folders(path: Path) -> list[str]:
    """Return the names of the real folders in a folder, by name; none where it is a link or missing."""
    if path.is_symlink():
        return []
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


def walk(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield every entry below a folder, at any depth; links are entries and are not followed."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from walk(Path(entry.path))


def refuse_links(folder: Path) -> None:
    """Raise InputError where a study's folder holds a link, which a write would follow out of it.

    The folder may be a link itself: a user keeps results where there is room.
    """
    for entry in walk(folder):
        if entry.is_symlink():
            raise InputError(f"{entry.path} is a link, and nothing is written to a study that holds one")

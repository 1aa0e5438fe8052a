"""Files written whole or not at all, and damaged files set aside."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


log = logging.getLogger("ahf")


def make_folder(path: Path) -> None:
    """Create a folder and its parents, durably."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _sync_folder(path.parent)


def atomic_write(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: temporary file beside it, fsync, rename, fsync of the folder."""
    make_folder(path.parent)
    temporary = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_json(path: Path, value: object) -> None:
    """Write strict JSON atomically; numbers that are not finite become null."""
    atomic_write(path, (json.dumps(strict(value), indent=1, allow_nan=False) + "\n").encode())


def write_csv(path: Path, frame: pd.DataFrame, digits: int | None = None) -> None:
    """Write a table atomically, as `csv_bytes` gives it."""
    atomic_write(path, csv_bytes(frame, digits))


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a table atomically, as CSV or Parquet by the ending of its name."""
    if path.suffix != ".parquet":
        return write_csv(path, frame)
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    atomic_write(path, buffer.getvalue())


SUMMARY_DIGITS = 12
"""Significant digits of means and intervals; sums in the order of another processor round to the same."""


_RUN = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a text that a spreadsheet runs."""


def csv_bytes(frame: pd.DataFrame, digits: int | None = None) -> bytes:
    """Return a table as CSV; NaN is an empty field, and no text is a formula to a spreadsheet.

    Numbers have as many significant digits as `digits` says, or else enough to read the same numbers back.
    """
    form = None if digits is None else f"%.{digits}g"
    texts = frame.select_dtypes(exclude=["number", "bool"])
    frame = frame.assign(**{str(name): column.map(_inert) for name, column in texts.items()})
    return frame.to_csv(index=False, lineterminator="\n", float_format=form).encode()


def _inert(cell: object) -> object:
    """Return a cell that a spreadsheet shows and does not run: an apostrophe stands before a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_RUN) else cell


def sha256(data: bytes) -> str:
    """Return the checksum that results carry, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def set_aside(file: Path, why: str) -> None:
    """Rename a damaged file to `<name>.corrupt-N`, where it can be, and log it."""
    if not os.path.lexists(file):
        return
    n = 1
    while os.path.lexists(target := file.with_name(f"{file.name}.corrupt-{n}")):
        n += 1
    try:
        os.replace(file, target)
        log.warning("%s is damaged (%s); set aside as %s", file, why, target.name)
    except OSError:
        log.warning("%s is damaged (%s) and ignored", file, why)


def strict(value: object) -> object:
    """Return a value with plain numbers for NumPy's, and None for every number that is not finite."""
    if hasattr(value, "dtype") and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): strict(v) for k, v in value.items()}
    return [strict(v) for v in value] if isinstance(value, list | tuple) else value


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def keep_plugins(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write plug-ins into `plugins/` of a study's folder; a plug-in with other content is replaced.

    The code that results depend on cannot have changed: it is part of a study's identity.
    """
    for name, content in files.items():
        target = folder / "plugins" / name
        if not target.exists() or target.read_bytes() != content:
            make_folder(target.parent)
            atomic_write(target, content)

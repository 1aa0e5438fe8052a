"""Trace files: one `.npz` a run, without pickled objects."""

from __future__ import annotations

import ast
import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ahf_cli.errors import InputError
from ahf_cli.study.files import atomic_write
from ahf_cli.training.trace import Trace

ARRAYS = ("setup", "x", "y", "last_direction")
GROUPS = ("init", "final", "trace")


def read_trace(path: Path) -> Trace:
    """Return the trace of a file; `ahf_cli.training.trace` checks that its parts fit together.

    Raises InputError with the file and its fault.
    """
    content = _read_arrays(path)
    missing = [name for name in ARRAYS if name not in content]
    missing += [f"{group}/…" for group in GROUPS if not any(name.startswith(f"{group}/") for name in content)]
    if missing:
        raise InputError(f"{path}: a trace must hold {', '.join(missing)}")
    groups = {
        group: {
            name.split("/", 1)[1]: value for name, value in content.items() if name.startswith(group + "/")
        }
        for group in GROUPS
    }
    return Trace(
        _setup(path, str(content["setup"])), content["x"], content["y"],
        groups["init"], groups["final"], groups["trace"], content["last_direction"],
    )  # fmt: skip


def _read_arrays(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            if file.read(2) != b"PK":  # NumPy would take other files for arrays or pickled objects
                raise ValueError("not a zip archive")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                content = {name: archive[name] for name in archive.files}
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        reason = str(error).replace(" when allow_pickle=False", "")
        raise InputError(f"{path}: not a readable .npz trace: {reason}") from None
    return {name: value for name, value in content.items() if isinstance(value, np.ndarray)}


def _setup(path: Path, text: str) -> dict[str, Any]:
    try:
        setup = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        setup = None
    if not isinstance(setup, dict) or not all(isinstance(key, str) for key in setup):
        raise InputError(f"{path}: setup must be a dict literal of names to values, got {text[:80]!r}")
    return setup


def write_trace(path: Path, trace: Trace) -> None:
    """Write a trace to a file atomically."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        allow_pickle=False,
        setup=np.array(repr(dict(trace.setup))),
        x=trace.x,
        y=trace.y,
        last_direction=trace.last_direction,
        **{f"init/{name}": value for name, value in trace.init.items()},
        **{f"final/{name}": value for name, value in trace.final.items()},
        **{f"trace/{name}": value for name, value in trace.series.items()},
    )
    atomic_write(path, buffer.getvalue())

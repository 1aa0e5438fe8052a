"""Trace files: one `.npz` a run, without pickled objects."""

from __future__ import annotations

import ast
import io
import zipfile
from pathlib import Path

import numpy as np

from ahf_cli.errors import InputError
from ahf_cli.experiment.trace import Trace
from ahf_cli.report.files import atomic_write

REQUIRED = ("kind", "recipe", "steps", "batch", "damping")


def read_trace(path: Path) -> Trace:
    """Read a trace, or raise InputError naming the file and what is wrong with it."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            content = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable .npz trace ({error})") from None
    missing = [name for name in ("setup", "x", "y", "last_direction") if name not in content]
    if missing:
        raise InputError(f"{path}: a trace must hold {', '.join(missing)}")
    try:
        setup = ast.literal_eval(str(content["setup"]))
    except (ValueError, SyntaxError):
        raise InputError(
            f"{path}: setup must be a dict literal, got {str(content['setup'])[:80]!r}"
        ) from None
    absent = [name for name in REQUIRED if name not in setup]
    if absent:
        raise InputError(f"{path}: setup must name {', '.join(absent)}")
    groups = {
        group: {
            name.split("/", 1)[1]: value for name, value in content.items() if name.startswith(group + "/")
        }
        for group in ("init", "final", "trace")
    }
    empty = [f"{group}/…" for group, values in groups.items() if not values]
    if empty:
        raise InputError(f"{path}: a trace must hold {', '.join(empty)}")
    return Trace(
        setup, content["x"], content["y"], groups["init"], groups["final"], groups["trace"],
        content["last_direction"],
    )  # fmt: skip


def write_trace(path: Path, trace: Trace) -> None:
    """Write a trace atomically."""
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

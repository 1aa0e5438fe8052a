"""`ahf verify`: a replay of recorded traces on this package's core."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ahf_cli.cli.options import Json, Quiet, emit_json, log, say
from ahf_cli.errors import AhfError, InputError

if TYPE_CHECKING:
    from ahf_cli.training.trace import Deviation, Trace

Files = Annotated[
    list[Path], typer.Argument(metavar="FILE.npz...", help="Traces, as `ahf train --record` writes them.")
]


def verify(files: Files, as_json: Json = False, quiet: Quiet = False) -> None:
    """Replay traces in float64 and print the deviation of each quantity.

    The tolerance is 1e-5, relative; iterations and stop reasons must be equal.  The exit code is 0 if all
    quantities are within it, 1 if not, and 2 if a file is no complete trace.
    """
    from ahf_cli.training.trace import deviations, replay

    documents, outside = [], []
    for file, trace in _read(files, quiet):
        found = deviations(trace, replay(trace))
        if any(d.first_step is not None for d in found):
            outside.append(str(file))
        documents.append({"file": str(file), "setup": dict(trace.setup), "deviations": _plain(found)})
        if not as_json:
            _print(file, found, quiet)
    if as_json:
        emit_json({"ok": not outside, "files": documents})
    if outside:
        raise AhfError(f"{len(outside)} of {len(files)} traces leave the tolerance: {', '.join(outside)}")


def _read(files: list[Path], quiet: bool) -> list[tuple[Path, Trace]]:
    """Return all traces, checked before the first replay.

    Raises InputError with one line a fault.
    """
    from ahf_cli.report.trace_file import read_trace
    from ahf_cli.training.trace import problems, unknown_names

    traces, errors = [], []
    for file in files:
        try:
            trace = read_trace(file)
        except InputError as error:
            errors += error.lines
            continue
        traces.append((file, trace))
        errors += [f"{file}: {problem}" for problem in problems(trace)]
        if unknown := unknown_names(trace.setup):
            log(f"{file}: unknown names in setup are ignored: {', '.join(unknown)}", quiet)
    if errors:
        raise InputError(errors)
    return traces


def _plain(found: list[Deviation]) -> list[dict[str, Any]]:
    return [{"quantity": d.quantity, "largest": d.largest, "first_step": d.first_step} for d in found]


def _print(file: Path, found: list[Deviation], quiet: bool) -> None:
    worst = [d for d in found if d.first_step is not None]
    say(f"{file}: {'outside the tolerance' if worst else 'ok'}")
    for d in worst if quiet else found:
        first = "" if d.first_step is None else f"  first outside at {_where(d.first_step)}"
        say(f"  {d.quantity:22} {d.largest:9.1e}{first}")


def _where(step: int) -> str:
    return f"step {step}" if step else "the end"

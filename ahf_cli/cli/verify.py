"""`ahf verify`: replay recorded traces on our core."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ahf_cli.cli.options import Json, Quiet, emit_json, say
from ahf_cli.errors import AhfError, InputError

if TYPE_CHECKING:
    from ahf_cli.experiment.trace import Deviation

Files = Annotated[
    list[Path], typer.Argument(metavar="FILE.npz...", help="Traces; the README says how to record.")
]


def verify(files: Files, as_json: Json = False, quiet: Quiet = False) -> None:
    """Replay traces in float64 and print how far we are from each of their quantities.

    Exit code 0 if all are within the tolerance (1e-5 relative; iterations and stop reasons equal), else 1.
    """
    from ahf_cli.experiment.trace import deviations, replay
    from ahf_cli.report.trace_file import read_trace

    traces = [(file, read_trace(file)) for file in files]  # a bad file is named before any work
    documents, outside = [], []
    for file, trace in traces:
        try:
            found = deviations(trace, replay(trace))
        except InputError as error:
            raise InputError(f"{file}: {line}" for line in error.lines) from None
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
            raise InputError(f"{file}: cannot be replayed: {error}".splitlines()[0]) from None
        if any(d.first_step is not None for d in found):
            outside.append(str(file))
        documents.append({"file": str(file), "setup": dict(trace.setup), "deviations": _plain(found)})
        if not as_json:
            _print(file, found, quiet)
    if as_json:
        emit_json({"ok": not outside, "files": documents})
    if outside:
        raise AhfError(f"{len(outside)} of {len(files)} traces leave the tolerance: {', '.join(outside)}")


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

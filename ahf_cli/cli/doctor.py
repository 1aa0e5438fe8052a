"""`ahf doctor`: the installation on this machine, for reports of errors."""

from __future__ import annotations

import shutil
import textwrap
from typing import Any

from ahf_cli.cli.options import DEFAULT_RESULTS, Json, Results, emit_json, say
from ahf_cli.errors import AhfError


def doctor(results: Results = DEFAULT_RESULTS, as_json: Json = False) -> None:
    """Print versions, device, data and disk, to be sent with a report of an error.

    The exit code is 0 if ahf can train here, else 1; the last lines say the reasons.  Home folders are
    printed as ~.
    """
    from ahf_cli.training.installation import examine

    found = examine(results)
    if as_json:
        emit_json(found)
    else:
        for line in lines(found, max(40, min(shutil.get_terminal_size().columns, 100))):
            say(line)
    if found["problems"]:
        raise AhfError(found["problems"])


def lines(found: dict[str, Any], columns: int = 100) -> list[str]:
    """Return the installation as aligned lines of text."""
    rows = _rows(found)
    width = max(map(len, rows)) + 2
    said = [
        textwrap.fill(f"{name:{width}}{text}", columns, subsequent_indent=" " * width, break_on_hyphens=False)
        for name, text in rows.items()
    ]
    return [*said, "ahf can train here"] if found["ready"] else said


def _rows(found: dict[str, Any]) -> dict[str, str]:
    versions, threads, device, data = (found[key] for key in ("versions", "threads", "device", "data"))
    commit = f", commit {versions['commit'][:8]}" if versions["commit"] else ""
    commit += " with changes" if versions["dirty"] else ""
    packages = ", ".join(f"{name} {number or 'missing'}" for name, number in versions["packages"].items())
    gpus = ", ".join(f"{gpu['name']} with {gpu['gigabytes']} GB" for gpu in device["gpus"])
    files = f"verified in {data['folder']}" if data["verified"] else "not usable"
    set_ = threads["OMP_NUM_THREADS"]
    omp = "OMP_NUM_THREADS unset" if set_ is None else f"OMP_NUM_THREADS={set_}"
    return {
        "ahf": f"{versions['ahf'] or 'not installed'}{commit}, in {versions['folder']}",
        "Python": f"{versions['python']} in {versions['environment']}",
        "packages": packages,
        "platform": f"{found['platform']['system']}, {found['platform']['processor']}",
        "threads": f"{threads['cores']} cores, {omp}, PyTorch {threads['torch'] or 'unknown'}",
        "device": f"{device['name']}: {gpus or device['reason']}",
        "numerics": found["numerics"]["said"],
        "data": f"{data['title']}: {files}",
        "results": f"{found['results']['folder']}: {found['results']['free_gigabytes']} GB free",
    }

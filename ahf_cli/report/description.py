"""The few lines that a notebook shows of a study."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ahf_cli.interruption import RESUMABLE
from ahf_cli.study.store import Study
from ahf_cli.tasks.metrics import digits

WIDTH = 100
"""characters of a list before it is cut"""


def description(
    studies: Sequence[Study],
    manifest: Mapping[str, Any],
    done: Mapping[str, int],
    planned: Mapping[str, int],
    missing: Sequence[str],
    best: pd.DataFrame,
    label: str,
) -> str:
    """Return places, state, trials by recipe, the best trial and the next command, one line each.

    Several studies have no best trial, because their criteria may differ.

    Args:
        studies: the studies, at least one.
        manifest: the first study's.
        done: number of trials that have ended, by recipe.
        planned: number of planned trials, by recipe.
        missing: one line for each recipe that lacks trials or re-runs.
        best: the best trial of each recipe.
        label: the searched metric in words.
    """
    holders = [f"in use by process {holder}" for study in studies if (holder := study.holder())]
    state = f"not finished: {', '.join(missing)}" if missing else "finished"
    counts = [f"{name} {done.get(name, 0)} of {planned.get(name, 0)}" for name in {**planned, **done}]
    lines = {
        "study": ", ".join(f"{study.name} in {study.folder}" for study in studies),
        "state": _cut(", ".join([*holders, state])),
        "trials": _cut(", ".join(counts)) or "none",
        "best": _best(best, label) if len(studies) == 1 else "",  # each study has its own criterion
        "next": _next(studies, manifest, bool(missing)),
    }
    return "\n".join(f"{name:8}{line}" for name, line in lines.items() if line)


def _best(best: pd.DataFrame, label: str) -> str:
    if not len(best):
        return "no trial has ended with a value"
    first = best.sort_values("value").iloc[0]
    return f"{first.name}/{int(first['trial']):03d}, {label} {digits(float(first['value']))}"


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def _next(studies: Sequence[Study], manifest: Mapping[str, Any], unfinished: bool) -> str:
    """Return the command that goes on: the last session's, if it can resume, else one that reads."""
    session = (manifest.get("sessions") or [manifest])[-1]
    command = str(session.get("command", ""))
    if unfinished and len(studies) == 1 and command.split()[1:2] and command.split()[1] in RESUMABLE:
        return command
    places = [str(study.folder) for study in studies]
    named = [place if "/" in place else os.path.join(".", place) for place in places]  # a path, not a name
    options = " ".join(f"--study {shlex.quote(place)}" for place in named)
    return f"ahf status {options}" if unfinished and len(studies) == 1 else f"ahf compare {options}"

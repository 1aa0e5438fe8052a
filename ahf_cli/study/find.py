"""Studies found by name or path."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from ahf_cli.errors import InputError
from ahf_cli.recipes.hyperparameters import nearest
from ahf_cli.study.manifest import NAME
from ahf_cli.study.store import Study

REFERENCE = "reference"
"""The folder of a results folder that holds committed studies."""


def study_names(results: Path) -> list[str]:
    """Return the names of the studies in a results folder; those in its `reference` are named with it."""
    own = _names_in(results)
    return own + [f"{REFERENCE}/{name}" for name in _names_in(results / REFERENCE)]


def _names_in(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    names = sorted(p.name for p in folder.iterdir() if re.fullmatch(NAME, p.name) and p.is_dir())
    return [name for name in names if Study(folder, name).exists()]


def check_results(results: Path) -> None:
    """Raise InputError where a results folder is missing."""
    if not results.is_dir():
        raise InputError(f"--results must be a folder, and {results} is none: give another, or run a study")


def find_study(results: Path, name: str) -> Study:
    """Return an existing study by its name or its path.

    A name is sought in the results folder and then in its `reference`; a path holds a `/`.

    Raises:
        InputError: there is none; the line has the nearest name that there is.
    """
    for study in _candidates(results, name):
        if study.exists():
            return study
    if not re.fullmatch(NAME, name):
        raise InputError(f"no study in {name}")
    known = [known.rpartition("/")[2] for known in study_names(results)]
    raise InputError(f"no study {name!r} in {results}{nearest(name, known) if known else '; it has none'}")


def _candidates(results: Path, name: str) -> Iterator[Study]:
    if re.fullmatch(NAME, name):
        yield Study(results, name)
        yield Study(results / REFERENCE, name, home=results)
        return
    for path in (Path(name), results / name):
        whole = Path(os.path.abspath(path))
        if whole.name and "\0" not in name:
            yield Study(whole.parent, whole.name, home=results, given=True)

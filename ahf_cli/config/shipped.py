"""The files that the package ships beside its modules: presets and examples."""

from __future__ import annotations

import pathlib
from importlib import resources
from importlib.resources.abc import Traversable

from ahf_cli.errors import InputError


def presets() -> dict[str, Traversable]:
    """Return the presets of the package by name."""
    return {name.removesuffix(".yaml"): file for name, file in _files("configs", ".yaml").items()}


def examples() -> dict[str, Traversable]:
    """Return the examples of the package by the names of their files."""
    return _files("examples", ".py", ".yaml")


def published() -> dict[str, Traversable]:
    """Return the package's tables of published curves by the names of their files."""
    return _files("configs", ".csv")


def _files(folder: str, *suffixes: str) -> dict[str, Traversable]:
    try:
        where: Traversable = resources.files(f"ahf_cli.{folder}")
    except ModuleNotFoundError:  # a source checkout: the folder lies beside the package
        where = pathlib.Path(__file__).parents[2] / folder
    found = {file.name: file for file in where.iterdir() if file.name.endswith(suffixes)}
    return dict(sorted(found.items()))


def copy(source: Traversable, target: pathlib.Path) -> pathlib.Path:
    """Write a shipped file to a new file, or under its own name into a folder; return the new file.

    Raises InputError where that file exists or its folder is missing.
    """
    file = target / source.name if target.is_dir() else target
    try:
        with file.open("xb") as stream:
            stream.write(source.read_bytes())
    except FileExistsError:
        raise InputError(f"{file} exists and is not overwritten; give another name") from None
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{file}: the folder {file.parent} does not exist") from None
    return file

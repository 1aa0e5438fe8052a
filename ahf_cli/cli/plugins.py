"""The option `--plugin`, which every command has."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE.py",
        help="Run a file of your own that registers recipes, models, data sets or losses; repeatable.",
        show_default=False,
    ),
]


def with_plugins(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command with the option `--plugin`: its files are loaded before the command runs."""

    @wraps(command)
    def run(*args: Any, plugin: list[Path] | None = None, **options: Any) -> None:
        if plugin:
            from ahf_cli.plugin import load

            load(plugin)
        command(*args, **options)

    # Typer reads the options from the signature.
    own = inspect.Parameter("plugin", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Plugins)
    declared = inspect.signature(command)
    hints = get_type_hints(command, include_extras=True)
    run.__annotations__ = {**hints, "plugin": Plugins}
    known = [p.replace(annotation=hints.get(p.name, p.annotation)) for p in declared.parameters.values()]
    run.__signature__ = declared.replace(parameters=[*known, own])  # type: ignore[attr-defined]
    return run

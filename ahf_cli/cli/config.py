"""`ahf config`: list presets, show resolved configurations, check files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ahf_cli.cli.options import ConfigFile, Json, Override, Preset, Study, emit_json, resolve, say
from ahf_cli.errors import InputError

app = typer.Typer(no_args_is_help=True, help="List presets, show and check configurations.")


@app.command("ls")
def list_presets(as_json: Json = False) -> None:
    """List the presets with their purpose."""
    from ahf_cli.experiment.config import presets

    found = {name: _purpose(file.read_text(encoding="utf-8")) for name, file in presets().items()}
    if as_json:
        emit_json([{"name": name, "purpose": purpose} for name, purpose in found.items()])
        return
    width = max(map(len, found), default=0)
    for name, purpose in found.items():
        say(f"{name:<{width}}  {purpose}")


@app.command()
def show(
    preset: Preset = None,
    config: ConfigFile = None,
    override: Override = None,
    study: Study = None,
    as_json: Json = False,
) -> None:
    """Print a configuration with all defaults filled in; the default is the preset `paper`."""
    resolved = resolve(preset, config, study, override)
    if as_json:
        emit_json({**resolved.plain(), "resolved": resolved.identity()})
    else:
        say(resolved.to_yaml().rstrip("\n"))


@app.command()
def validate(files: Annotated[list[Path], typer.Argument(metavar="FILE...", show_default=False)]) -> None:
    """Check configuration files and print every error of each."""
    from ahf_cli.experiment.config import load

    errors: list[str] = []
    for file in files:
        try:
            load(file=file)
        except InputError as error:
            errors += error.lines
        else:
            say(f"{file}: ok")
    if errors:
        raise InputError(errors)


def _purpose(text: str) -> str:
    """Return the first line of the comment that opens a preset."""
    first = text.partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""

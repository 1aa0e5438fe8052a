"""`ahf config`: list, show and copy presets and examples, check files."""

from __future__ import annotations

import ast
import shutil
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from ahf_cli.cli import completion
from ahf_cli.cli.options import (
    ConfigFile,
    Device,
    Json,
    Override,
    Preset,
    Recipe,
    Study,
    Trials,
    emit_json,
    resolve,
    say,
)
from ahf_cli.errors import InputError

app = typer.Typer(no_args_is_help=True, help="List and copy presets, show and check configurations.")

PresetName = Annotated[
    str,
    typer.Argument(
        metavar="PRESET", help="A preset; `ahf config ls` lists them.", autocompletion=completion.presets
    ),
]
NewFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="A new file, or a folder that gets the preset's file name.")
]
ExampleName = Annotated[
    str | None,
    typer.Argument(
        metavar="[NAME]", help="An example, such as spirals.py.", autocompletion=completion.examples
    ),
]
ExampleFile = Annotated[
    Path | None,
    typer.Argument(metavar="[FILE]", help="A new file, or a folder; default: the current folder."),
]


@app.command("ls")
def list_presets(as_json: Json = False) -> None:
    """List the presets with their purpose."""
    from ahf_cli.config.load import presets

    found = {name: preset_purpose(file.read_text(encoding="utf-8")) for name, file in presets().items()}
    if as_json:
        emit_json([{"name": name, "purpose": purpose} for name, purpose in found.items()])
        return
    _say_purposes(found)


def _say_purposes(found: dict[str, str]) -> None:
    width, columns = max(map(len, found), default=0), max(40, min(shutil.get_terminal_size().columns, 100))
    for name, purpose in found.items():
        say(textwrap.fill(f"{name:<{width}}  {purpose}", columns, subsequent_indent=" " * (width + 2)))


@app.command("cp")
def copy_preset(preset: PresetName, file: NewFile, as_json: Json = False) -> None:
    """Copy the file of a preset, with its comments, to a new file for `--config`."""
    from ahf_cli.config.load import presets
    from ahf_cli.config.shipped import copy
    from ahf_cli.recipes.hyperparameters import nearest

    known = presets()
    if preset not in known:
        raise InputError(f"unknown preset {preset!r}{nearest(preset, known)}")
    _say_file("preset", preset, copy(known[preset], file), as_json)


@app.command()
def example(name: ExampleName = None, file: ExampleFile = None, as_json: Json = False) -> None:
    """Copy an example of this package to a new file; without NAME, list the examples."""
    from ahf_cli.config.shipped import copy, examples
    from ahf_cli.recipes.hyperparameters import nearest

    known = examples()
    if name is None:
        found = {name: _example_purpose(text.read_text(encoding="utf-8")) for name, text in known.items()}
        if as_json:
            emit_json([{"name": name, "purpose": purpose} for name, purpose in found.items()])
        else:
            _say_purposes(found)
        return
    if name not in known:
        raise InputError(f"unknown example {name!r}{nearest(name, known)}")
    _say_file("example", name, copy(known[name], file or Path(name)), as_json)


def _say_file(kind: str, name: str, file: Path, as_json: bool) -> None:
    if as_json:
        emit_json({kind: name, "file": str(file)})
    else:
        say(str(file))


def _example_purpose(text: str) -> str:
    """Return the first line of the docstring of a program, or the opening comment of a configuration."""
    if text.startswith("#"):
        return preset_purpose(text)
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


@app.command()
def show(
    preset: Preset = None,
    config: ConfigFile = None,
    override: Override = None,
    study: Study = None,
    recipe: Recipe = None,
    trials: Trials = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Print a configuration with all defaults filled in; the default is the preset `paper`.

    It takes the options of `ahf search`; its output is a file for `--config`.
    """
    resolved = resolve(preset, config, study, override, recipe, trials, device)
    if as_json:
        emit_json({**resolved.plain(), "resolved": resolved.identity()})
    else:
        say(resolved.to_yaml().rstrip("\n"))


@app.command()
def recipes(
    classes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CLASS]...", help="Optimizer classes, such as torch.optim.NAdam, instead of all recipes."
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/recipes.md.")] = False,
    as_json: Json = False,
) -> None:
    """List the built-in recipes with update rule, search ranges, source and place in the code."""
    from ahf_cli.recipes import document as documents
    from ahf_cli.recipes.builtin import RECIPES

    if markdown:
        say(documents.page().rstrip("\n"))
        return
    found = _classes(classes) if classes else [documents.document(recipe) for recipe in RECIPES.values()]
    if as_json:
        emit_json(found)
        return
    width = max(len(recipe["name"]) for recipe in found)
    for recipe in found:
        say(f"{recipe['name']:{width}}  {recipe['rule']}")
        searched = [h for h in recipe["hyperparameters"] if h["search"]]
        ranges = [f"{h['name']} [{h['search'][0]:g}, {h['search'][1]:g}]" for h in searched]
        say(f"{'':{width}}  searched: {', '.join(ranges)}; source {recipe['source']}")
        for title in ("fixed", "settings") if classes else ():
            own = [f"{key} = {value}" for key, value in recipe[title].items()]
            say(f"{'':{width}}  {title}: {', '.join(own) or 'none'}")


def _classes(paths: list[str]) -> list[dict[str, Any]]:
    """Return optimizer classes as plain data, with the defaults of their arguments.

    Raises InputError with one line for each that is none.
    """
    from ahf_cli.recipes import document as documents
    from ahf_cli.recipes.classes import class_document

    found, errors = [], []
    for path in paths:
        try:
            recipe, defaults = class_document(path)
        except ValueError as error:
            errors.append(f"{path}: {error}")
            continue
        found.append({**documents.document(recipe), **defaults})
    if errors:
        raise InputError(errors)
    return found


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", show_default=False)],
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Check configuration files and print every error.  The exit code is 0 without errors, else 2."""
    from ahf_cli.config.load import load

    errors: dict[Path, list[str]] = {file: [] for file in files}
    for file in errors:
        try:
            load(file=file)
        except InputError as error:
            errors[file] = error.lines
        else:
            if not (as_json or quiet):
                say(f"{file}: ok")
    wrong = [line for lines in errors.values() for line in lines]
    if as_json:
        emit_json({"ok": not wrong, "files": {str(file): lines for file, lines in errors.items()}})
    if wrong:
        raise InputError(wrong)


def preset_purpose(text: str) -> str:
    """Return the first paragraph of the comment that opens a preset, as one line."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#") or not line.strip("# "):
            break
        lines.append(line.strip("# "))
    return " ".join(" ".join(lines).split())

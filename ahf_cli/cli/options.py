"""Options that commands share, the configuration that they select, and output to the terminal."""

from __future__ import annotations

import inspect
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from ahf_cli.cli import completion
from ahf_cli.errors import InputError
from ahf_cli.streams import takes_unicode

if TYPE_CHECKING:
    import pandas as pd

    from ahf_cli.config.load import Config, Setting
    from ahf_cli.tasks.metrics import Column


_CONFIGURATION = "Configuration"

Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="Take a preset; `ahf config ls` lists them.",
        autocompletion=completion.presets,
        rich_help_panel=_CONFIGURATION,
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="Take a configuration file.", rich_help_panel=_CONFIGURATION
    ),
]
Override = Annotated[
    list[str] | None,
    typer.Option(
        "--override",
        "-o",
        metavar="KEY=VALUE",
        help="Set one key, such as train.epochs=1; repeatable.",
        autocompletion=completion.settings,
        rich_help_panel=_CONFIGURATION,
    ),
]
Study = Annotated[
    str | None,
    typer.Option(
        "--study",
        metavar="NAME",
        help="Name of the study and its folder; default: the name of the preset or file.",
        autocompletion=completion.own_studies,
        rich_help_panel=_CONFIGURATION,
    ),
]
Recipe = Annotated[
    list[str] | None,
    typer.Option(
        "--recipe",
        metavar="NAME",
        help="Take this recipe, or an optimizer class such as torch.optim.NAdam, instead of search.recipes; "
        "repeatable. A study keeps the recipes that it has.",
        autocompletion=completion.recipes,
        rich_help_panel=_CONFIGURATION,
    ),
]
Trials = Annotated[
    int | None,
    typer.Option("--trials", metavar="N", help="Number of trials a recipe.", rich_help_panel=_CONFIGURATION),
]
Design = Annotated[
    Literal["paper", "fair", "crossed"] | None,
    typer.Option(
        "--design",
        help="paper: one Bayesian search a recipe on training loss. fair: random trials on validation loss, "
        "each with a seed of its own, then re-runs of the best with 20 new seeds. crossed: each draw with "
        "each seed, for the variance between draws and between seeds.",
        rich_help_panel=_CONFIGURATION,
    ),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"] | None,
    typer.Option("--device", help="Device that trains.", rich_help_panel=_CONFIGURATION),
]
Results = Annotated[
    Path, typer.Option("--results", metavar="DIR", help="Folder of the studies.", show_default=True)
]
Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="Keep the index in a database: postgresql+psycopg://user@host/database. The variable "
        "AHF_STORAGE may hold the URL, and must if it has a password. Default: a SQLite file of the study.",
    ),
]
Log = Annotated[
    Literal["tensorboard", "mlflow", "wandb"] | None,
    typer.Option(
        "--log",
        help="Show steps and evaluations in this program too, by default from files in RESULTS/STUDY/log. "
        "It must be installed: pip install tensorboard, mlflow-skinny or wandb.",
    ),
]
DEFAULT_RESULTS = Path("results")
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")]


def resolve(
    preset: str | None = None,
    config: Path | None = None,
    study: str | None = None,
    overrides: Sequence[str | Setting] | None = None,
    recipes: Sequence[str] | None = None,
    trials: int | None = None,
    device: str | None = None,
    default_preset: str = "paper",
    trials_key: str = "search.trials",
    design: str | None = None,
) -> Config:
    """Return the configuration that the options select; the named options win over `--override`.

    `--design` also sets the keys that it implies, unless an override does.

    `trials_key` is the key that `--trials` sets.  Raises InputError with one line for each error.
    """
    from ahf_cli.config.load import load

    if trials is not None and trials < 1:
        raise InputError(f"--trials must be ≥ 1, got {trials}")
    if preset is None and config is None:
        preset = default_preset
    named = _settings(
        {
            "--study": ("study", study),
            "--recipe": ("search.recipes", list(recipes) if recipes else None),
            "--trials": (trials_key, trials),
            "--device": ("run.device", device),
            "--design": ("search.design", design),
        }
    )
    found = load(preset, config, [*_implied(design), *(overrides or ()), *named])
    for line in found.warnings:
        log(f"warning: {line}")
    return found


def _implied(design: str | None) -> list[Setting]:
    """Return the settings that `--design` implies."""
    from ahf_cli.config.load import Setting
    from ahf_cli.config.schema import IMPLIED

    found = IMPLIED.get(design, {}) if design else {}
    return [Setting("--design", ("search", key), value) for key, value in found.items()]


def repeated(
    preset: str | None,
    config: Path | None,
    overrides: Sequence[str] | None,
    results: Path,
    device: str | None,
) -> list[str]:
    """Return the words of a command line that select the same configuration and results."""
    words: list[str] = []
    for option, value in (("--preset", preset), ("--config", config)):
        words += [option, str(value)] if value is not None else []
    for override in overrides or ():
        words += ["-o", override]
    words += ["--results", str(results)] if results != DEFAULT_RESULTS else []
    return words + (["--device", device] if device else [])


def _settings(options: Mapping[str, tuple[str, object]]) -> list[Setting]:
    """Return the given options as settings."""
    from ahf_cli.config.load import Setting

    return [
        Setting(option, tuple(key.split(".")), value)
        for option, (key, value) in options.items()
        if value is not None
    ]


def check_target(name: str, value: float | None, metric: Column) -> None:
    """Raise InputError where the target of a metric is outside its range."""
    if value is not None and not 0 < value < metric.top:
        raise InputError(f"{name} must be in (0, {metric.top:g}), for {metric.label}, got {value:g}")


def say(text: str) -> None:
    """Print a result to standard output."""
    typer.echo(text)


def log(text: str, quiet: bool = False) -> None:
    """Print progress or a remark to standard error, unless quiet."""
    if not quiet:
        typer.echo(text, err=True)


def emit_json(data: object) -> None:
    """Print one JSON document; NaN and infinities, which JSON lacks, become null."""
    typer.echo(json.dumps(_finite(data), ensure_ascii=not takes_unicode(), indent=2, allow_nan=False))


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, list | tuple) else data


@contextmanager
def writing_to(folder: Path, study: Path | None = None, option: str = "--out") -> Iterator[None]:
    """A context in which a failed write to a folder raises InputError with the folder and its remedy.

    Within a study's folder no link is followed: a link in a received study may point to any file.
    """
    if study is not None and folder.is_relative_to(study):
        from ahf_cli.study.opening import refuse_links

        for part in (folder, *folder.parents):
            if part == study:
                break
            if part.is_symlink():
                raise InputError(f"{part} must not be a link; choose a folder with --out")
        refuse_links(folder)
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"cannot write to {folder}: {reason}; choose another folder with {option}"
        ) from error


def print_tables(texts: dict[str, pd.DataFrame]) -> None:
    """Print tables of text under their titles."""
    from ahf_cli.report.text import as_text, is_words

    if sys.stdout.isatty():
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        console, all_ruled = Console(), []
        for title, rows in texts.items():
            ruled = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
            for name in rows.columns:
                ruled.add_column(name, justify="left" if is_words(rows[name]) else "right", no_wrap=True)
            for row in rows.itertuples(index=False):
                ruled.add_row(*map(str, row))
            all_ruled.append(ruled)
        # In a narrow terminal, rich would cut digits off.
        unbounded = console.options.update(width=10_000)
        if all(console.measure(r, options=unbounded).maximum <= console.width for r in all_ruled):
            console.print(*all_ruled)
            return
    say(as_text(texts) + "\n")


Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE.py",
        help="Load a Python file that registers recipes, models, data sets or losses; repeatable.",
        show_default=False,
    ),
]


def with_plugins(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command with the option `--plugin`, whose files are loaded before the command runs."""

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

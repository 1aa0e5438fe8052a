"""`ahf train`: one run of one recipe."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ahf_cli.cli import completion, session
from ahf_cli.cli.options import (
    DEFAULT_RESULTS,
    ConfigFile,
    Device,
    Json,
    Log,
    Override,
    Preset,
    Quiet,
    Results,
    Study,
    emit_json,
    resolve,
    say,
)
from ahf_cli.cli.record import record_trace
from ahf_cli.errors import InputError
from ahf_cli.interruption import Interruption
from ahf_cli.tasks.metrics import digits
from ahf_cli.training.environment import THREADS, thread_count
from ahf_cli.training.records import headline_of

if TYPE_CHECKING:
    from ahf_cli.cli.progress import Display
    from ahf_cli.config.load import Config
    from ahf_cli.recipes.recipe import Recipe
    from ahf_cli.search.single import Single
    from ahf_cli.training.ranks import Ranks
    from ahf_cli.training.records import Progress

EVERY = 5.0
"""seconds between lines without a terminal"""

Name = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="Recipe, such as hf, or an optimizer class, such as torch.optim.NAdam.",
        autocompletion=completion.recipes,
    ),
]
Param = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        "-p",
        metavar="NAME=VALUE",
        help="Set a hyperparameter, such as lr=0.3; repeatable. The others have defaults; all are printed.",
    ),
]
Record = Annotated[
    Path | None,
    typer.Option(
        "--record",
        metavar="FILE.npz",
        help="Run in float64 on the CPU, and write only this trace, for `ahf verify`.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        help=f"CPU threads; default: {THREADS}, else 1, with bitwise the result of a search's trial.",
    ),
]


def train(
    recipe: Name,
    param: Param = None,
    record: Record = None,
    threads: Threads = None,
    log: Log = None,
    preset: Preset = None,
    config: ConfigFile = None,
    override: Override = None,
    study: Study = None,
    results: Results = DEFAULT_RESULTS,
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train once with chosen hyperparameters; save the curve and its figure.

    `torchrun --nproc-per-node N -m ahf_cli train RECIPE …` trains data-parallel: each process takes an equal
    part of every batch.

    All files are in the folder RESULTS/STUDY: the curve in trials/RECIPE/000/curve.csv, with steps,
    hyperparameters and the result beside it; the figure in report/figures/.

    The default name of the study is train-RECIPE-HASH, with a hash of configuration and hyperparameters.  So
    the same command resumes or reports its result, and another command has another folder.  The preset sets
    the length; `-o train.steps=60` is a short run.
    """
    resolved = resolve(preset, config, study, override, device=device).with_class(recipe)
    found = _find(resolved, recipe)
    params = _params(param or (), found)
    count = thread_count(threads)
    if record is not None:
        if log is not None:
            raise InputError(f"--record writes a trace alone: leave out --log {log}")
        record_trace(resolved, found, params, record, count, as_json, quiet)
        return
    from ahf_cli.search.single import Single
    from ahf_cli.training.environment import resolve_device
    from ahf_cli.training.ranks import joined

    with joined(resolve_device(resolved.run.device)) as ranks:
        ranks.check(resolved.task.batch_size)
        single = Single(resolved, found, params)
        if not ranks.leads:
            _follow(single, count, ranks)
            return
        document = _run(single, results, study, count, quiet, ranks, log)
    if as_json:
        emit_json(document)
        return
    for line in lines(document):
        say(line)


def _find(config: Config, name: str) -> Recipe:
    from ahf_cli.config.load import load, presets
    from ahf_cli.recipes.hyperparameters import nearest

    if name in config.recipe_names:
        return config.recipe(name)
    for preset in presets():
        if name in load(preset).recipe_names:
            raise InputError(
                f"unknown recipe {name!r}; the preset {preset} defines it: add --preset {preset}"
            )
    raise InputError(f"unknown recipe {name!r}{nearest(name, config.recipe_names, pluggable=True)}")


def _params(texts: Sequence[str], recipe: Recipe) -> dict[str, float]:
    """Return the hyperparameters of NAME=VALUE texts and the defaults of the others.

    Raises InputError with one line a fault.
    """
    from ahf_cli.recipes.recipe import single_run

    values: dict[str, float] = {}
    errors: list[str] = []
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        try:
            if not equals:
                raise ValueError(f"must be NAME=VALUE, got {text!r}")
            if name in values:
                raise ValueError(f"{name} must be given once, got {values[name]:g} and {value.strip()}")
            values |= _checked(name, value, recipe)
        except ValueError as error:
            errors.append(f"--param: {error}")
    if errors:
        raise InputError(errors)
    return single_run(recipe) | values


def _checked(name: str, text: str, recipe: Recipe) -> dict[str, float]:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number, got {text!r}") from None
    recipe.complete({name: value})
    return {name: value}


def _run(
    single: Single,
    results: Path,
    study: str | None,
    threads: int | None,
    quiet: bool,
    ranks: Ranks,
    log: str | None,
) -> dict[str, Any]:
    """Train, unless the run is finished, and return its result as plain data."""
    from ahf_cli.cli.progress import Display, Terminal
    from ahf_cli.report.exhibits.curves import figure_2
    from ahf_cli.report.study_data import judged
    from ahf_cli.search.single import train_single
    from ahf_cli.study.frames import curves_frame

    recipe, folder, stop = single.recipe, single.study(results, study), Interruption()
    with stop.watched(quiet), Display(recipe.name, 0, 1, quiet) as display:
        result = train_single(
            single, folder, threads, reporter=Terminal(quiet), on_progress=_shown(display), should_stop=stop,
            ranks=ranks, log=log,
        )  # fmt: skip
    if result is None:
        raise session.interrupted()
    trials = judged(folder, [result], folder.manifest())
    files = figure_2(
        trials, curves_frame(folder), {recipe.name: 1}, "se", single.config.metrics, folder.report_folder
    )
    trial = folder.trial(recipe.name, 0)
    rows = trial.curve().to_dict("records")
    return {
        "study": folder.name,
        "folder": str(folder.folder),
        "recipe": recipe.name,
        "params": single.params,
        "status": result.status,
        "outcome": trials["outcome"].iloc[0],
        "error": result.error,
        "steps": result.steps,
        "planned_steps": result.planned_steps,
        "seconds": result.seconds,
        "first": rows[0],
        "last_evaluation": rows[-1],
        "final": rows[-1] if result.status == "ok" else None,
        "files": [str(file) for file in [trial.path / "curve.csv", *files]],
    }


def _follow(single: Single, threads: int | None, ranks: Ranks) -> None:
    """Train as a later rank of a run that the first rank leads."""
    from ahf_cli.search.single import follow

    stop = Interruption()
    with stop.watched(quiet=True):
        done = follow(single, threads, ranks, stop)
    if not done:
        raise session.interrupted()


def _shown(display: Display) -> Callable[[Progress], None]:
    """Return a function that shows every step on a terminal, else one evaluation in EVERY seconds."""
    last = -math.inf

    def show(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if sys.stderr.isatty():
            display.evaluation(progress)
        elif progress.row is not None and now - last >= EVERY:
            last = now
            display.evaluation(progress)

    return show


def lines(document: dict[str, Any]) -> list[str]:
    """Return the result of a run as lines of text; for a diverged run, its last evaluation."""
    last, first = document["last_evaluation"], document["first"]
    column = headline_of(last)[0]
    reached = f"training loss {digits(last['train_loss'])}, {column.replace('_', ' ')} {digits(last[column])}"
    began = f"(at first {digits(first['train_loss'])} and {digits(first[column])})"
    if document["status"] == "diverged":
        end = f"diverged at step {document['steps']} of {document['planned_steps']}"
        end += f" ({document['error']})" if document["error"] else ""
        reached = f"last evaluation before that, at step {last['step']}: {reached}"
    else:
        end = f"{document['steps']} steps in {document['seconds']:.0f} s"
        reached = f"it {document['outcome']}: {reached} {began}"
    params = " ".join(f"{name}={value:g}" for name, value in document["params"].items())
    return [f"{document['recipe']}, {params}: {end}", reached, *document["files"]]

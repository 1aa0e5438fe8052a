"""`ahf train`: one run of one recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ahf_cli.cli import session
from ahf_cli.cli.options import (
    DEFAULT_RESULTS,
    ConfigFile,
    Device,
    Json,
    Override,
    Preset,
    Quiet,
    Results,
    Study,
    emit_json,
    log,
    resolve,
    say,
)
from ahf_cli.errors import InputError

if TYPE_CHECKING:
    from ahf_cli.experiment.config import Config
    from ahf_cli.hyperparameters import Recipe

Name = Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe, such as hf or adaptive_hf.")]
Param = Annotated[
    list[str] | None,
    typer.Option(
        "--param", "-p", metavar="NAME=VALUE", help="Set a hyperparameter, such as lr=0.3; repeatable."
    ),
]
Record = Annotated[
    Path | None,
    typer.Option("--record", metavar="FILE.npz", help="Run in float64 and record a trace for `ahf verify`."),
]


def train(
    recipe: Name,
    param: Param = None,
    record: Record = None,
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

    The study is named train-RECIPE-HASH by default, the hash being that of configuration and hyperparameters,
    so that the same command resumes, or says that it is done, and another one goes elsewhere.
    """
    resolved = resolve(preset, config, study, override, device=device)
    found = _find(resolved, recipe)
    params = _params(param or (), found)
    if record is not None:
        _record(resolved, found, params, record, quiet)
        return
    document = _run(resolved, found, params, results, study, quiet)
    if as_json:
        emit_json(document)
        return
    say(document["end"])
    for file in document["files"]:
        say(file)


def _find(config: Config, name: str) -> Recipe:
    from ahf_cli.hyperparameters import nearest

    if name not in config.recipe_names:
        raise InputError(f"unknown recipe {name!r}{nearest(name, config.recipe_names)}")
    return config.recipe(name)


def _params(texts: Sequence[str], recipe: Recipe) -> dict[str, float]:
    """Parse NAME=VALUE; raise InputError for everything that is wrong."""
    values: dict[str, float] = {}
    errors: list[str] = []
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            if not equals:
                raise ValueError(f"must be NAME=VALUE, got {text!r}")
            values |= _checked(name.strip(), value, recipe)
        except ValueError as error:
            errors.append(f"--param: {error}")
    if errors:
        raise InputError(errors)
    return recipe.complete(values)


def _checked(name: str, text: str, recipe: Recipe) -> dict[str, float]:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number, got {text!r}") from None
    recipe.complete({name: value})
    return {name: value}


def _run(
    config: Config, recipe: Recipe, params: dict[str, float], results: Path, study: str | None, quiet: bool
) -> dict[str, Any]:
    import hashlib
    import json

    import torch

    from ahf_cli.cli.progress import Display, describe
    from ahf_cli.experiment.search import Job
    from ahf_cli.experiment.worker import Worker
    from ahf_cli.report.figures import figure_2
    from ahf_cli.report.store import Study as StudyFolder
    from ahf_cli.report.store import curves_frame, trials_frame

    identity = {**config.for_recipe(recipe.name).identity(), "params": params}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    folder = StudyFolder(results, study or f"train-{recipe.name}-{digest}")
    spec, plan, stop = session.task_spec(config), session.plan_of(config), session.Interruption()
    own = session.manifest(config, spec, 1)
    folder.open_for_writing(config.to_yaml(), identity, {**own, "plan": {recipe.name: 1}, "threads": None})
    with folder:
        result = folder.trial(recipe.name, 0).result()
        if result is None:
            log(f"{recipe.name}: {plan.steps} steps on {spec.device}; in {folder.folder}", quiet)
            torch.set_num_threads(session.threads_of(spec.device))
            with stop.watched(quiet), Display(recipe.name, 0, 1, quiet) as display:
                worker = Worker(spec.load(), plan, folder.trials, display.evaluation, stop)
                outcome = worker.run(Job(recipe, {0: params}))
                if outcome.stopped:
                    raise session.interrupted()
                if outcome.error:
                    raise RuntimeError(outcome.error)
                result = outcome.results[0]
        folder.write_derived()
        trials = trials_frame(folder)
        files = figure_2(trials, curves_frame(folder), {recipe.name: 1}, "se", folder.report_folder)
    curve = folder.trial(recipe.name, 0).path / "curve.csv"
    last = folder.trial(recipe.name, 0).curve().iloc[-1]
    return {
        "study": folder.name,
        "status": result.status,
        "steps": result.steps,
        "params": params,
        "final": {str(key): float(value) for key, value in last.items()},
        "end": describe(result),
        "files": [str(file) for file in [curve, *files]],
    }


def _record(config: Config, recipe: Recipe, params: dict[str, float], file: Path, quiet: bool) -> None:
    """Run the first steps of a configuration in float64 and write them as a trace."""
    from dataclasses import asdict

    import numpy as np
    import torch

    from ahf_cli.experiment.trace import run
    from ahf_cli.report.trace_file import write_trace
    from ahf_cli.tasks.task import CURVATURE_STREAM, GRADIENT_STREAM, Task

    if file.exists():
        raise InputError(f"--record: FILE must not exist yet, got {file}")
    spec = session.task_spec(config)
    task = Task.lenet(spec.folder, spec.split, spec.batch_size, "cpu", spec.subset, torch.float64)
    steps = session.plan_of(config).steps
    setup = {
        "kind": "lenet",
        "recipe": (recipe.name, *recipe.lineage)[-1],
        "steps": steps,
        "batch": task.batch_size,
        **asdict(recipe.structure),
        **params,
    }
    streams = [GRADIENT_STREAM]
    streams += [CURVATURE_STREAM] if recipe.structure.curvature_batch == "independent" else []
    batches = [task.batch(config.seed, stream, step) for stream in streams for step in range(steps)]
    x = np.concatenate([b.inputs.numpy() for b in batches])
    y = np.concatenate([b.targets.numpy() for b in batches])
    pieces = task.layout.split(task.initial(config.seed)[None])
    init = {name: piece[0].numpy() for name, piece in zip(task.layout.names, pieces, strict=True)}
    log(f"{recipe.name}: {steps} steps in float64", quiet)
    trace = run(setup, recipe, x, y, init)
    write_trace(file, trace)
    say(f"{file}: {steps} steps, loss {trace.series['loss'][0]:.4f} to {trace.series['loss_after'][-1]:.4f}")

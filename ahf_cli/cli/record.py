"""`ahf train --record`: a trace of a run in float64 with all its inputs, for other implementations."""

from __future__ import annotations

import math
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ahf_cli.cli.options import emit_json, log, say
from ahf_cli.errors import InputError, InterruptedRunError

if TYPE_CHECKING:
    from ahf_cli.config.load import Config
    from ahf_cli.recipes.recipe import Recipe
    from ahf_cli.tasks.task import Task
    from ahf_cli.training.trace import Trace

LARGE = 500e6
"""bytes of inputs from which a warning is printed"""


def record_trace(
    config: Config,
    recipe: Recipe,
    params: dict[str, float],
    file: Path,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train for the steps of a configuration in float64, and write the trace atomically.

    Raises InputError before the run where the file exists or cannot be written.
    """
    import torch

    from ahf_cli.report.trace_file import write_trace

    if not recipe.hessian_free:
        raise InputError(f"--record: a trace records linear systems, and recipe {recipe.name!r} solves none")
    for key in ("curvature_batches", "batch_growth"):
        if getattr(recipe.choices, key) > 1:
            raise InputError(f"--record: a trace has batches of one size, and this recipe has {key} > 1")
    for key, needed in (("model", "lenet"), ("loss", "cross_entropy")):
        if (found := getattr(config.task, key)) != needed:
            raise InputError(f"--record: a trace needs LeNet and cross-entropy, got task.{key} {found}")
    if recipe.choices.parts:
        raise InputError(f"--record: a trace needs built-in parts, but {recipe.name!r} has a plug-in's")
    if config.run.device == "cuda":
        raise InputError("--record runs on the CPU: leave out run.device cuda")
    _check_target(file)
    with _interruptible(file):
        torch.set_num_threads(threads or 1)
        trace = _run(config, recipe, params, quiet)
        write_trace(file, trace)
    document = _document(file, trace)
    if as_json:
        emit_json(document)
        return
    loss = f"{document['first_loss']:.4g} to {document['last_loss']:.4g}"
    say(f"{file}: {document['steps']} steps, batch loss {loss}; {document['bytes'] / 1e6:.1f} MB")
    say(f"to replay it: ahf verify {file}")


def _check_target(file: Path) -> None:
    if file.exists():
        raise InputError(f"--record: FILE must not exist yet, got {file}")
    folder = file.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"--record: cannot write to {folder} ({error.strerror or error})") from None


@contextmanager
def _interruptible(file: Path) -> Iterator[None]:
    """A context that raises InterruptedRunError on Ctrl-C or SIGTERM; no file remains."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"interrupted; {file} is not written, and the same command records it from the start"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(config: Config, recipe: Recipe, params: dict[str, float], quiet: bool) -> Trace:
    import numpy as np
    import torch

    from ahf_cli.cli.progress import Display
    from ahf_cli.recipes.structure import CHOICES
    from ahf_cli.search.machine import plan_of, task_spec
    from ahf_cli.tasks.datasets import DATA_SETS
    from ahf_cli.tasks.task import CURVATURE_STREAM, GRADIENT_STREAM, Task
    from ahf_cli.training.records import Progress
    from ahf_cli.training.trace import run

    independent = recipe.choices.curvature_batch == "independent"
    streams = [GRADIENT_STREAM, CURVATURE_STREAM] if independent else [GRADIENT_STREAM]
    spec, steps = task_spec(config), plan_of(config).of(recipe.name).steps
    log(f"{recipe.name}: {steps} steps in float64", quiet)
    numbers = math.prod(DATA_SETS[config.task.data].shape)
    _warn_of_size(len(streams) * steps * config.task.batch_size, numbers, steps)
    task = Task.on(spec.read(), "lenet", spec.batch_size, "cpu", torch.float64)
    batches = [task.batch([config.seed], stream, step) for stream in streams for step in range(steps)]
    x = np.concatenate([b.inputs.numpy() for b in batches])
    y = np.concatenate([b.targets.numpy() for b in batches])
    del batches
    setup = {
        "kind": "lenet",
        "recipe": (recipe.name, *recipe.lineage)[-1],
        "steps": steps,
        "batch": task.batch_size,
        **{key: getattr(recipe.choices, key) for key in CHOICES},
        **params,
    }
    with Display(recipe.name, 0, 1, quiet) as display:

        def shown(step: int, loss: float) -> None:
            display.progress(Progress(recipe.name, 0, step, steps, loss))

        return run(setup, recipe, x, y, _initial(task, config.seed), shown)


def _warn_of_size(examples: int, numbers: int, steps: int) -> None:
    size = examples * numbers * 8
    if size >= LARGE:
        log(
            f"warning: {steps} steps read {examples:,} examples, {size / 1e9:.1f} GB in float64 memory and "
            "about a tenth of it on disk; -o train.steps=20 records fewer"
        )


def _initial(task: Task, seed: int) -> dict[str, Any]:
    pieces = task.layout.split(task.initial(seed)[None])
    return {name: piece[0].numpy() for name, piece in zip(task.layout.names, pieces, strict=True)}


def _document(file: Path, trace: Trace) -> dict[str, Any]:
    return {
        "file": str(file),
        "bytes": file.stat().st_size,
        "setup": dict(trace.setup),
        "steps": trace.setup["steps"],
        "examples": len(trace.x),
        "first_loss": float(trace.series["loss"][0]),
        "last_loss": float(trace.series["loss_after"][-1]),
    }

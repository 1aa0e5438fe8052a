"""Targets of `--log`: programs that show the steps and evaluations of a trial as a run.

A target holds a copy; the record of a study is its own files.  Without the user's own settings a target
writes into the study's folder and uses no network.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ahf_cli.errors import InputError
from ahf_cli.search.storage import sqlite_url
from ahf_cli.training.records import CurveRow, StepRow, TrialResult


@dataclass(frozen=True)
class TargetRun:
    """A trial that a target shows as one run."""

    study: str
    name: str
    """such as trials/hf/000"""
    key: str
    """hexadecimal digest of the study's time of birth, the name and the hyperparameters"""
    params: Mapping[str, float]
    step: int
    """first step of this session; 0 for a trial that begins"""
    folder: Path
    """folder of the study's logs"""


class Target(Protocol):
    """One run in a target: receives the records of its trial in the order of steps."""

    resumed: bool
    """whether the run has the records of an earlier session"""

    def step(self, row: StepRow) -> None:
        """Take one optimizer step."""
        ...

    def evaluation(self, row: CurveRow) -> None:
        """Take one evaluation on whole sets."""
        ...

    def end(self, result: TrialResult | None) -> None:
        """Close the run, with the result of its trial; None for a trial that was stopped."""
        ...


def numbers(prefix: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a record, but its step, by `prefix/column`."""
    found = {k: float(v) for k, v in values.items() if k != "step" and isinstance(v, int | float)}
    return {f"{prefix}/{name}": value for name, value in found.items() if math.isfinite(value)}


def final(result: TrialResult) -> dict[str, float]:
    """Return the final metrics, the sampler's value and the length of a trial."""
    own = {"value": result.value, "steps": result.steps, "seconds": result.seconds}
    return numbers("result", {**result.measured, **own})


class TensorBoard:
    """A run as event files in `log/tensorboard/`."""

    def __init__(self, run: TargetRun):
        from torch.utils.tensorboard import SummaryWriter

        folder = run.folder / "tensorboard" / run.name
        self.resumed = run.step > 0 and any(folder.glob("events.*"))
        self._params = dict(run.params)
        # TensorBoard then hides what an earlier session has written from this step on.
        self._writer = SummaryWriter(str(folder), purge_step=run.step)

    def step(self, row: StepRow) -> None:
        """Write one optimizer step."""
        self._write("step", vars(row))

    def evaluation(self, row: CurveRow) -> None:
        """Write one evaluation, with all steps before it."""
        self._write("evaluation", row.plain())
        self._writer.flush()

    def end(self, result: TrialResult | None) -> None:
        """Write hyperparameters and final metrics, and close the files."""
        if result is not None:
            own = {**self._params, "status": result.status}
            self._writer.add_hparams(own, final(result), run_name=".")
        self._writer.close()

    def _write(self, prefix: str, row: Mapping[str, Any]) -> None:
        for name, value in numbers(prefix, row).items():
            self._writer.add_scalar(name, value, row["step"])


class MLflow:
    """A run in the database of MLFLOW_TRACKING_URI, by default in `log/mlflow.db`."""

    MOST, EVERY = 900, 5.0
    """metrics and seconds after which waiting steps are written: MLflow takes at most 1000 metrics a call"""

    def __init__(self, run: TargetRun):
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):  # each tells of the tables that it makes
            logging.getLogger(name).setLevel(logging.WARNING)
        if "MLFLOW_TRACKING_URI" in os.environ:
            self._client = MlflowClient()
        else:
            run.folder.mkdir(parents=True, exist_ok=True)
            self._client = MlflowClient(sqlite_url(run.folder / "mlflow.db"))
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.study
        experiment = self._client.get_experiment_by_name(name)
        own = experiment.experiment_id if experiment else self._client.create_experiment(name)
        found = self._client.search_runs([own], f"tags.`ahf.key` = '{run.key}'")
        self.resumed = bool(found)
        made = found[0] if found else self._client.create_run(
            own, tags={"ahf.key": run.key, "ahf.study": run.study}, run_name=run.name
        )  # fmt: skip
        self._id, self._waiting, self._written = made.info.run_id, list[Any](), time.monotonic()
        if self.resumed:
            self._client.update_run(self._id, "RUNNING")
            return
        for key, value in run.params.items():
            self._client.log_param(self._id, key, value)

    def step(self, row: StepRow) -> None:
        """Take one optimizer step, and write when there are many or some seconds have passed."""
        self._take(row.step, numbers("step", vars(row)))
        if len(self._waiting) > self.MOST or time.monotonic() - self._written > self.EVERY:
            self._write()

    def evaluation(self, row: CurveRow) -> None:
        """Write one evaluation, with all steps before it."""
        self._take(row.step, numbers("evaluation", row.plain()))
        self._write()

    def end(self, result: TrialResult | None) -> None:
        """Write final metrics and outcome, and end the run; a stopped one can go on."""
        if result is not None:
            self._take(result.steps, final(result))
            self._client.set_tag(self._id, "ahf.status", result.status)
        self._write()
        self._client.set_terminated(self._id, "KILLED" if result is None else "FINISHED")

    def _take(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._waiting += [Metric(name, value, now, step) for name, value in values.items()]

    def _write(self) -> None:
        waiting, self._waiting, self._written = self._waiting, [], time.monotonic()
        if waiting:
            self._client.log_batch(self._id, metrics=waiting)


class WeightsAndBiases:
    """A run of Weights & Biases by WANDB_MODE, by default offline in `log/wandb/`."""

    def __init__(self, run: TargetRun):
        import wandb

        run.folder.mkdir(parents=True, exist_ok=True)
        before = any((run.folder / "wandb").glob(f"*-{run.key}"))
        # Only steps and evaluations: no output of the terminal, no code, no link in the study's folder.
        quiet = wandb.Settings(
            silent=True,
            console="off",
            symlink=False,
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
        )
        self._run = wandb.init(
            id=run.key, name=run.name, group=os.environ.get("WANDB_RUN_GROUP") or run.study,
            project=os.environ.get("WANDB_PROJECT") or "ahf", config=dict(run.params),
            dir=os.environ.get("WANDB_DIR") or str(run.folder),
            mode=None if "WANDB_MODE" in os.environ else "offline",
            resume="allow", reinit="create_new", settings=quiet,
        )  # fmt: skip
        self._run.define_metric("*", step_metric="step")
        for path in run.folder.rglob("*"):
            if path.is_symlink():  # to its log in the user's cache; a study with links is not resumed
                path.unlink()
        self.resumed = before or bool(self._run.resumed)

    def step(self, row: StepRow) -> None:
        """Write one optimizer step."""
        self._run.log({"step": row.step, **numbers("step", vars(row))})

    def evaluation(self, row: CurveRow) -> None:
        """Write one evaluation."""
        self._run.log({"step": row.step, **numbers("evaluation", row.plain())})

    def end(self, result: TrialResult | None) -> None:
        """Write final metrics and outcome, and close the run; a stopped one can go on."""
        self._run.summary.update({"status": "stopped"} if result is None else
                                 {**final(result), "status": result.status})  # fmt: skip
        self._run.finish(exit_code=int(result is None))


@dataclass(frozen=True)
class Kind:
    """A kind of target: how a run is opened, and its Python packages."""

    open: Callable[[TargetRun], Target]
    modules: tuple[str, ...]
    package: str
    """to be installed"""
    defaults: Mapping[str, str]
    """environment variables where the user sets none: no telemetry, and no minutes of repeated requests"""


_MLFLOW = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
TARGETS: dict[str, Kind] = {
    "tensorboard": Kind(TensorBoard, ("torch.utils.tensorboard",), "tensorboard", {}),
    "mlflow": Kind(MLflow, ("mlflow", "alembic"), "mlflow-skinny", _MLFLOW),
    "wandb": Kind(WeightsAndBiases, ("wandb",), "wandb", {"WANDB_ERROR_REPORTING": "false"}),
}


def target(name: str | None) -> Kind | None:
    """Return a kind of target by name, with its packages imported; None for none.

    Raises:
        InputError: the name is unknown, or a package is not installed or cannot be imported.
    """
    if name is None:
        return None
    if name not in TARGETS:
        raise InputError(f"--log must be one of {', '.join(TARGETS)}, got {name!r}")
    kind = TARGETS[name]
    for variable, value in kind.defaults.items():
        os.environ.setdefault(variable, value)
    try:
        for module in kind.modules:
            importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise InputError(
                f"--log {name} needs the package {kind.package}, which is not installed: "
                f"pip install {kind.package}"
            ) from None
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"--log {name}: the package {kind.package} cannot be imported: {reason}") from None
    return kind

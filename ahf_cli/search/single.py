"""A single run of one recipe with chosen hyperparameters, alone or in data-parallel ranks."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ahf_cli.config.load import Config
from ahf_cli.errors import AhfError, IncompleteError
from ahf_cli.recipes.recipe import Recipe
from ahf_cli.search.logger import Logger, following
from ahf_cli.search.machine import manifest, plan_of, refuse_classes, task_spec, threads_of, used_plugins
from ahf_cli.search.plan import SILENT, Hooks, Reporter, ShouldStop, never
from ahf_cli.search.pool import Job
from ahf_cli.search.targets import target
from ahf_cli.search.worker import TaskSpec, Worker
from ahf_cli.study.files import keep_plugins
from ahf_cli.study.frames import write_tables
from ahf_cli.study.manifest import refuse_mixture
from ahf_cli.study.store import Study
from ahf_cli.study.trial_folder import TrialFolders
from ahf_cli.tasks.task import Task
from ahf_cli.training.ranks import Ranks, agreed, shared
from ahf_cli.training.records import Progress, TrialResult
from ahf_cli.training.train import Plan

ALONE = Ranks()


@dataclass(frozen=True)
class Single:
    """A recipe with its hyperparameters, and the study that its one trial belongs to."""

    config: Config
    recipe: Recipe
    params: dict[str, float]
    """all hyperparameters"""

    @property
    def identity(self) -> dict[str, Any]:
        """The identity of the study."""
        return {**self.config.searching([self.recipe.name]).identity(), "params": self.params}

    def study(self, results: Path, name: str | None = None) -> Study:
        """Return the study, named `train-RECIPE-HASH` by default."""
        return Study(results, name or f"train-{self.recipe.name[:49]}-{self._digest()}")

    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:8]


def train_single(
    single: Single,
    study: Study,
    threads: int | None = None,
    *,
    reporter: Reporter = SILENT,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: ShouldStop = never,
    ranks: Ranks = ALONE,
    log: str | None = None,
) -> TrialResult | None:
    """Train, or find that it is done, and return the result; None where it was stopped.

    Args:
        single: the run.
        study: where its trial is kept.
        threads: CPU threads; by default one.
        reporter: is told of remarks.
        on_progress: hears of every step.
        should_stop: ends the run early, with a checkpoint.
        ranks: this process's place among those that train together.
        log: name of a target that shows the run: tensorboard, mlflow or wandb.

    Raises:
        AhfError: the training failed.
        IncompleteError: the finished trial has vanished from the folder.
    """
    config, recipe, kind = single.config, single.recipe, target(log)
    refuse_classes(config, [recipe.name], single.params)
    spec, plan = task_spec(config), plan_of(config).of(recipe.name)
    count = threads or threads_of(spec.device)
    own = manifest(config, spec, 1, [recipe.name]) | {
        "plan": {recipe.name: 1},
        "rerun_plan": {},
        "threads": count,
        "ranks": ranks.world,
    }
    if not config.run.mix_numerics and study.trial(recipe.name, 0).result() is None:
        refuse_mixture(study.manifest(), own)
    study.open_for_writing(config.to_yaml(), single.identity, own)
    with study:
        keep_plugins(study.folder, used_plugins(config.searching([recipe.name])))
        trial = study.trial(recipe.name, 0)
        result = trial.result()
        if result is not None:
            shared(ranks, None)
            unlogged = "; --log shows no trial that is done" if log else ""
            reporter.say(f"{recipe.name}: done already, in {study.folder}{unlogged}")
            study.drop_session()
            write_tables(study)
            return result
        _announce(single, study, plan, spec.device, ranks, reporter)
        torch.set_num_threads(count)
        shared(ranks, trial.load_checkpoints())
        logger = Logger(kind, study) if kind else None
        with following(logger, study.trials, Hooks(on_progress=on_progress)) as hooks:
            part, stop = _part(spec, ranks), agreed(ranks, should_stop)
            result = _outcome(Worker(part, plan, study.trials, hooks.on_progress, stop), single)
            if result is not None:
                hooks.on_result(result)
        if result is not None and trial.result() is None:
            raise IncompleteError(
                f"{recipe.name}: the finished trial has vanished from {study.folder}, 0 of 1 is left; "
                "the same command trains it again"
            )
        write_tables(study)
    return result


def follow(single: Single, threads: int | None, ranks: Ranks, should_stop: ShouldStop = never) -> bool:
    """Do a rank's part of a run that the first rank leads, and write nothing; False where it was stopped."""
    spec, plan = task_spec(single.config), plan_of(single.config).of(single.recipe.name)
    torch.set_num_threads(threads or threads_of(spec.device))
    checkpoints = shared(ranks, None)
    if checkpoints is None:  # it is done already
        return True
    with tempfile.TemporaryDirectory() as folder:  # the leading rank's folder is kept
        records = TrialFolders(Path(folder))
        for checkpoint in reversed(checkpoints):
            records.trial(single.recipe.name, 0).save_checkpoint(checkpoint, 0)
        worker = Worker(_part(spec, ranks), plan, records, should_stop=agreed(ranks, should_stop))
        return _outcome(worker, single) is not None


def _outcome(worker: Worker, single: Single) -> TrialResult | None:
    outcome = worker.run(Job(single.recipe, {0: single.params}))
    if outcome.stopped:
        return None
    if outcome.error:
        raise AhfError(f"{single.recipe.name} failed: {outcome.error}")
    return outcome.results[0]


def _announce(
    single: Single, study: Study, plan: Plan, device: str, ranks: Ranks, reporter: Reporter
) -> None:
    """Report the length and folder of the run, and write its hyperparameters."""
    recipe, trial = single.recipe, study.trial(single.recipe.name, 0)
    resuming = ", from the last checkpoint" if trial.load_checkpoints() else ""
    together = f" with {ranks.world} ranks" if ranks.world > 1 else ""
    reporter.say(f"{recipe.name}: {plan.steps} steps on {device}{together}{resuming}; in {study.folder}")
    if trial.read_params() is None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        trial.write_params({"recipe": recipe.name, "slot": 0, "params": single.params, "started": now})


def _part(spec: TaskSpec, ranks: Ranks) -> Task:
    """Load the task of one rank."""
    own = replace(spec, device=ranks.device(spec.device))
    return replace(own.load(), part=(ranks.rank, ranks.world))

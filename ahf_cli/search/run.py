"""Runs: from a configuration to a finished study on disk."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ahf_cli.config.load import Config
from ahf_cli.search.cost import measure_costs
from ahf_cli.search.logger import Logger, following
from ahf_cli.search.machine import (
    manifest,
    plan_of,
    refuse_classes,
    task_spec,
    threads_of,
    used_plugins,
    workers_and_batch,
)
from ahf_cli.search.plan import SILENT, Reporter, ShouldStop, never, repeats, rerun_plan
from ahf_cli.search.pool import describe
from ahf_cli.search.search import Search, SearchPlan
from ahf_cli.search.storage import (
    OtherSchemaError,
    Storage,
    answering,
    open_storage,
    refuse_network_file_system,
    sqlite_url,
)
from ahf_cli.search.summary import grown_from, refuse_other_settings, remaining, summarize
from ahf_cli.search.targets import target
from ahf_cli.search.worker import TaskSpec, process_pool
from ahf_cli.study.costs import read_costs
from ahf_cli.study.files import keep_plugins
from ahf_cli.study.frames import write_tables
from ahf_cli.study.index import whole_index
from ahf_cli.study.manifest import refuse_mixture
from ahf_cli.study.store import Study
from ahf_cli.study.trial_folder import TrialFolders
from ahf_cli.training.environment import numerical_path
from ahf_cli.training.train import Plan


def own_storage(study: Study) -> Storage:
    """Return the storage of a study's own file; one of another version of Optuna is set aside before."""
    try:
        return open_storage(sqlite_url(whole_index(study.folder)))
    except OtherSchemaError:
        return open_storage(
            sqlite_url(whole_index(study.folder, "its tables are of another version of Optuna"))
        )


@dataclass(frozen=True)
class Finished:
    """The outcome of a run."""

    study: Study
    done: bool
    """False where the run was stopped: the same run resumes it"""
    summary: dict[str, Any]
    """counts and best trials by recipe, as plain data"""


def run(
    config: Config,
    study: Study,
    title: str = "search",
    *,
    stream: int = 0,
    storage: str | None = None,
    log: str | None = None,
    reporter: Reporter = SILENT,
    should_stop: ShouldStop = never,
) -> Finished:
    """Run or resume the search of a configuration, and its re-runs, in a study's folder.

    Args:
        config: the search.
        study: the study, new or begun.
        title: name of the stage in remarks.
        stream: of the sampler: 0 for a search, 1 for a pre-run.
        storage: URL of a storage that several machines share; by default the study's own file.
        log: name of a target that shows the trials: tensorboard, mlflow or wandb.
        reporter: is told of remarks and trials.
        should_stop: ends the run early, with checkpoints.

    Raises:
        InputError: the folder holds a study with other settings, or data or device are missing.
        AhfError: trials failed too often.
    """
    started = time.monotonic()
    # All that can be wrong is found before anything is written.
    refuse_classes(config, config.searched)
    kind = target(log)
    spec, plan = task_spec(config), plan_of(config)
    workers, batch = workers_and_batch(config, spec.device)
    if not study.exists():
        spec.load()
    if storage is None:
        refuse_network_file_system(study.folder)
    opened = open_storage(storage) if storage is not None else None
    about = manifest(config, spec, workers)
    grown = grown_from(study, config, stream)
    refuse_other_settings(study, grown)
    if _fewer(study, config, storage is not None, reporter):
        return Finished(study, True, summarize(study, config, time.monotonic() - started))
    if (
        study.exists()
        and not config.run.mix_numerics
        and any(left.runs for left in remaining(study, grown).values())
    ):
        refuse_mixture(study.manifest(), about)
    study.open_for_writing(grown.to_yaml(), grown.identity(), about)
    with study:
        keep_plugins(study.folder, used_plugins(config))
        before = _result_files(study)
        created = study.manifest()["created"] if opened else ""
        search = search_plan(config, workers, batch, stream, created, text=grown.to_yaml())
        search = replace(search, known=grown.search.trials)
        done = conduct(
            search, study.trials, opened or own_storage(study),
            Training(spec, plan, workers, title, str(study.folder), Logger(kind, study) if kind else None),
            reporter, should_stop,
            again_of(config, study.reruns.trials, search.prefix),
        )  # fmt: skip
        write_tables(study)
        if done and not stream:
            _measure_once(grown, study, reporter, should_stop)
        summary = summarize(study, config, time.monotonic() - started)
        if done and _result_files(study) == before and study.manifest():
            study.drop_session()
    return Finished(study, done, summary)


def _measure_once(config: Config, study: Study, reporter: Reporter, should_stop: ShouldStop) -> None:
    """Measure the costs of a finished study, unless those of all its recipes are known."""
    try:
        known = read_costs(study)
        if known is None or set(config.searched) - set(known.recipes):
            measure_costs(config, study, reporter, should_stop)
    except Exception as error:  # a plug-in's, say: the search is finished all the same
        reporter.say(f"costs are not measured: {describe(error)}")


def search_plan(
    config: Config, workers: int = 1, batch: int = 1, stream: int = 0, created: str = "", guest: bool = False,
    text: str | None = None,
) -> SearchPlan:  # fmt: skip
    """Return the plan of a configuration's search.

    Optuna's studies are named by recipe in a study's own file, and in full in a storage that may hold others;
    `created`, a study's time of birth, says that it is such a one.  `text` is the configuration by which
    others join, if it holds more than this one.
    """
    about = {
        name: {
            "config": text or config.to_yaml(),
            "identity": config.searching([name]).identity(),
            "trials": config.search.trials,
            "created": created,
        }
        for name in config.searched
    }
    return SearchPlan(
        {name: config.recipe(name) for name in config.searched},
        {name: config.space(name) for name in config.searched},
        config.search.trials, config.seed, config.search.sampler, workers, batch, stream,
        prefix(config.study, "prerun" if stream else "search") if created else "", about, guest,
        cap=config.metrics.loss.baseline, seeds=config.search.seeds, repeats=config.search.repeats,
    )  # fmt: skip


@dataclass(frozen=True)
class Training:
    """The training of a search by its processes, and the name of the stage."""

    spec: TaskSpec
    plan: Plan
    workers: int
    title: str
    where: str
    logger: Logger | None = None


@dataclass(frozen=True)
class Again:
    """The re-runs of the best trials, which follow a search of the fair design."""

    count: int
    """new seeds a recipe"""
    records: TrialFolders
    prefix: str
    """beginning of the names of their Optuna studies"""


def again_of(config: Config, records: TrialFolders, search_prefix: str = "") -> Again | None:
    """Return the re-runs that follow the search of a configuration; None without re-runs."""
    if config.search.design != "fair":
        return None
    own = prefix(config.study, "rerun") if search_prefix else "rerun/"
    return Again(config.search.reruns, records, own)


def join(
    config: Config, created: str, storage: Storage, records: TrialFolders, reruns: TrialFolders, where: str,
    reporter: Reporter = SILENT, should_stop: ShouldStop = never,
) -> bool:  # fmt: skip
    """Train trials of a search that another process has begun; return whether all is done.

    Args:
        config: of the search.
        created: the study's time of birth.
        storage: shared by all processes.
        records: the folders of its trials.
        reruns: the folders of its re-runs.
        where: the place of these, for remarks.
        reporter: is told of remarks and trials.
        should_stop: ends it early, with checkpoints.
    """
    refuse_classes(config, config.searched)
    spec, plan = task_spec(config), plan_of(config)
    workers, batch = workers_and_batch(config, spec.device)
    own = search_plan(config, workers, batch, 0, created, guest=True)
    training = Training(spec, plan, workers, "worker", where)
    again = again_of(config, reruns, own.prefix)
    return conduct(own, records, storage, training, reporter, should_stop, again)


def conduct(
    plan: SearchPlan, records: TrialFolders, storage: Storage, training: Training, reporter: Reporter,
    should_stop: ShouldStop, again: Again | None = None,
) -> bool:  # fmt: skip
    """Run a search on a storage, and its re-runs; return whether all is done, False where it was stopped."""
    with closing(storage), answering(storage):
        search = Search(plan, records, storage)
        if not _train(search, records, training, reporter, should_stop):
            return False
        if again is None:
            return True
        best = search.best()
        for name in plan.recipes:
            if name not in best:
                reporter.say(f"{name}: all trials have diverged, and there is none to run again")
                continue
            if aside := again.records.retire(name, partial(repeats, best=best[name])):
                reporter.say(f"{name} has a new best trial; re-runs of the one before are in {aside}")
        own = rerun_plan(plan, best, again.count, again.prefix)
        repeated = replace(training, title=f"{training.title}, re-runs")
        return not best or _train(
            Search(own, again.records, storage), again.records, repeated, reporter, should_stop
        )  # fmt: skip


def _train(
    search: Search, records: TrialFolders, training: Training, reporter: Reporter, should_stop: ShouldStop
) -> bool:
    """Train the unfinished trials of a search; return whether all is done."""
    spec, title, plan = training.spec, training.title, search.plan
    total = plan.trials * len(plan.recipes)
    left = len(search.unfinished)
    own = {training.plan.of(name).steps for name in plan.recipes}
    steps = f"{min(own)} to {max(own)}" if len(own) > 1 else str(*own)
    reporter.say(_plan_line(title, training.where, total, left, steps, training.workers, spec.device))
    if training.logger and left < total:
        reporter.say("--log shows no trial that is done")
    workers = max(1, min(training.workers, left))
    threads = threads_of(spec.device)
    with (
        reporter.stage(title, total - left, total) as shown,
        following(training.logger, records, shown) as hooks,
    ):
        return search.run(
            lambda: process_pool(spec, training.plan, records, workers, threads),
            replace(hooks, should_stop=should_stop),
        )


def prefix(study: str, stage: str) -> str:
    """Return the beginning of the names of a study's Optuna studies in a storage that may hold others."""
    return f"{study}/{stage}/"


def _fewer(study: Study, config: Config, stored: bool, reporter: Reporter) -> bool:
    """Say that trials are only added, where fewer are asked for; return whether these are all finished.

    With a storage (`stored`) that is not known: others may have finished trials that are not here yet.
    """
    planned = study.planned() if study.exists() else {}
    more, asked = max((planned.get(name, 0) for name in config.searched), default=0), config.search.trials
    if more <= asked:
        return False
    done = not stored and not any(left.runs for left in remaining(study, config).values())
    head = f"study {study.name!r} plans {more} trials of a recipe, and trials are only added: "
    tail = (
        f"the {asked} asked for are finished, and no file is changed"
        if done
        else f"this goes on to {asked} and keeps the others; --trials {more} finishes them"
    )
    reporter.say(head + tail)
    return done


def _plan_line(title: str, folder: str, total: int, left: int, steps: str, workers: int, device: str) -> str:
    if not left:
        return f"{title}: all {total} trials are done in {folder}"
    done = f", {total - left} of them done" if left < total else ""
    where = f"{device}, numerical path {numerical_path(device)}"
    return f"{title}: {total} trials of {steps} steps{done}; {workers} worker(s) on {where}; in {folder}"


def _result_files(study: Study) -> dict[Path, int]:
    """Return the `result.json` of all trials and re-runs, with the times of their last change."""
    found = (f for s in (study, study.reruns) for f in s.trials_folder.glob("*/*/result.json"))
    return {file: file.stat().st_mtime_ns for file in found}

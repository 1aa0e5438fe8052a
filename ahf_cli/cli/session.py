"""What the commands that train share: from a configuration to a finished study on disk."""

from __future__ import annotations

import os
import time
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ahf_cli.cli.conditions import manifest, plan_of, task_spec, threads_of, used_plugins, workers_and_batch
from ahf_cli.cli.options import log
from ahf_cli.cli.remaining import grown_from, refuse_other_settings, remaining
from ahf_cli.cli.summary import summarize
from ahf_cli.errors import InputError, InterruptedRunError
from ahf_cli.interruption import Interruption, resume_line

__all__ = ["Interruption"]

if TYPE_CHECKING:
    from ahf_cli.config.load import Config
    from ahf_cli.search.search import Search, SearchPlan
    from ahf_cli.search.storage import Storage
    from ahf_cli.search.worker import TaskSpec
    from ahf_cli.study.store import Study
    from ahf_cli.study.trial_folder import TrialFolders
    from ahf_cli.training.train import Plan


def interrupted() -> InterruptedRunError:
    """Return the error that says how to go on."""
    return InterruptedRunError(resume_line())


def storage_url(option: str | None, config: Config | None) -> str | None:
    """Return the URL of the storage: of the option, the environment or the configuration, in this order.

    Raises:
        InputError: it is no such URL, or the option holds a password, which would be seen by everybody.
    """
    from ahf_cli.search.storage import has_password, parse_url

    if option is not None and has_password(option):
        raise InputError(
            "--storage: holds a password, which everybody on this machine could read in the list of "
            "processes; give the URL in the environment variable AHF_STORAGE"
        )
    url = option or os.environ.get("AHF_STORAGE") or (config.storage if config is not None else None)
    if url is not None:
        parse_url(url)
    return url


def own_storage(study: Study) -> Storage:
    """Return the storage of a study's own file; one of another version of Optuna is set aside before."""
    from ahf_cli.search.storage import OtherSchemaError, open_storage, sqlite_url

    try:
        return open_storage(sqlite_url(study.index()))
    except OtherSchemaError:
        return open_storage(sqlite_url(study.index("its tables are of another version of Optuna")))


def run_search(
    config: Config, study: Study, quiet: bool, title: str, stream: int = 0, storage: str | None = None
) -> dict[str, Any]:
    """Run or resume the search of a configuration in a study's folder, and return a summary.

    Raises:
        InterruptedRunError: stopped by a signal; the same command resumes.
    """
    from ahf_cli.search.storage import open_storage, refuse_network_file_system
    from ahf_cli.study.copies import keep_plugins

    started = time.monotonic()
    # All that can be wrong is found before anything is written.
    url = storage_url(storage, config)
    spec, plan = task_spec(config), plan_of(config)
    workers, batch = workers_and_batch(config, spec.device)
    if not study.exists():
        spec.load()
    if url is None:
        refuse_network_file_system(study.folder)
    opened = open_storage(url) if url is not None else None
    about = manifest(config, spec, workers)
    grown = grown_from(study, config, stream)
    refuse_other_settings(study, grown)
    if _fewer(study, config, url is not None, quiet):
        return summarize(study, config, time.monotonic() - started)
    study.open_for_writing(grown.to_yaml(), grown.identity(), about)
    with study:
        keep_plugins(study.folder, used_plugins(config))
        before = study.result_files()
        created = study.manifest()["created"] if opened else ""
        search = search_plan(config, workers, batch, stream, created, text=grown.to_yaml())
        search = replace(search, known=grown.search.trials)
        done = conduct(
            search, study.trials, opened or own_storage(study),
            Training(spec, plan, workers, title, str(study.folder)), quiet,
            again_of(config, study.reruns.trials, search.prefix),
        )  # fmt: skip
        study.write_derived()
        if not done:
            raise interrupted()
        summary = summarize(study, config, time.monotonic() - started)
        if study.result_files() == before and study.manifest():
            study.drop_session()
    return summary


def search_plan(
    config: Config, workers: int = 1, batch: int = 1, stream: int = 0, created: str = "", guest: bool = False,
    text: str | None = None,
) -> SearchPlan:  # fmt: skip
    """Return what the search of a configuration does.

    Optuna's studies are named by recipe in a study's own file, and in full in a storage that may hold others;
    `created`, a study's time of birth, says that it is such a one.  `text` is what others join by, where that
    is more than this configuration.
    """
    from ahf_cli.search.search import SearchPlan

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
        cap=config.metrics.loss.baseline,
    )  # fmt: skip


@dataclass(frozen=True)
class Training:
    """What the workers of a search do, and what it is called."""

    spec: TaskSpec
    plan: Plan
    workers: int
    title: str
    where: str


@dataclass(frozen=True)
class Again:
    """What follows a search of the fair design: re-runs of the best trials."""

    count: int
    """new seeds a recipe"""
    records: TrialFolders
    prefix: str
    """what the names of their Optuna studies begin with"""


def again_of(config: Config, records: TrialFolders, search_prefix: str = "") -> Again | None:
    """Return what follows the search of a configuration; None where nothing does."""
    if config.search.design != "fair":
        return None
    own = prefix(config.study, "rerun") if search_prefix else "rerun/"
    return Again(config.search.reruns, records, own)


def conduct(
    plan: SearchPlan, records: TrialFolders, storage: Storage, training: Training, quiet: bool,
    again: Again | None = None,
) -> bool:  # fmt: skip
    """Run a search on a storage until all is done, and return True, or until a signal comes."""
    from ahf_cli.search.reruns import repeats, rerun_plan
    from ahf_cli.search.search import Search
    from ahf_cli.search.storage import answering

    stop = Interruption()
    with closing(storage), answering(storage), stop.watched(quiet):
        search = Search(plan, records, storage)
        if not _train(search, records, training, stop, quiet):
            return False
        if again is None:
            return True
        best = search.best()
        for name in plan.recipes:
            if name not in best:
                log(f"{name}: all trials have diverged, and there is none to run again", quiet)
                continue
            if aside := again.records.retire(name, partial(repeats, best=best[name])):
                log(f"{name} has a new best trial; re-runs of the one before are in {aside}", quiet)
        own = rerun_plan(plan, best, again.count, again.prefix)
        repeated = replace(training, title=f"{training.title}, re-runs")
        return not best or _train(
            Search(own, again.records, storage), again.records, repeated, stop, quiet
        )  # fmt: skip


def _train(
    search: Search, records: TrialFolders, training: Training, stop: Interruption, quiet: bool
) -> bool:
    """Train what is unfinished of a search; return whether all is done."""
    from ahf_cli.cli.progress import Display
    from ahf_cli.search.search import Hooks
    from ahf_cli.search.worker import process_pool

    spec, title, plan = training.spec, training.title, search.plan
    total = plan.trials * len(plan.recipes)
    left = len(search.unfinished)
    own = {training.plan.of(name).steps for name in plan.recipes}
    steps = f"{min(own)} to {max(own)}" if len(own) > 1 else str(*own)
    log(_plan_line(title, training.where, total, left, steps, training.workers, spec.device), quiet)
    workers = max(1, min(training.workers, left))
    threads = threads_of(spec.device)
    with Display(title, total - left, total, quiet) as display:
        return search.run(
            lambda: process_pool(spec, training.plan, records, workers, threads),
            Hooks(display.result, display.progress, display.remark, stop),
        )


def prefix(study: str, stage: str) -> str:
    """Return what the names of a study's Optuna studies begin with in a storage that may hold others."""
    return f"{study}/{stage}/"


def _fewer(study: Study, config: Config, stored: bool, quiet: bool) -> bool:
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
    log(head + tail, quiet)
    return done


def _plan_line(title: str, folder: str, total: int, left: int, steps: str, workers: int, device: str) -> str:
    if not left:
        return f"{title}: all {total} trials are done in {folder}"
    done = f", {total - left} of them done" if left < total else ""
    return f"{title}: {total} trials of {steps} steps{done}; {workers} worker(s) on {device}; in {folder}"

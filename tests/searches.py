"""Searches whose trials take microseconds, and the contents of their index."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import closing

import optuna
from optuna.trial import TrialState

from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.recipes.recipe import search_range
from ahf_cli.search.pool import Ended, Job, Outcome, Prepare
from ahf_cli.search.search import Hooks, Search, SearchPlan
from ahf_cli.search.storage import open_storage
from ahf_cli.search.worker import TaskSpec, Trainer
from ahf_cli.study.store import Study
from ahf_cli.study.trial_folder import TrialFolders
from ahf_cli.training.records import Progress, Status, TrialResult
from ahf_cli.training.train import Plan
from tests.studies import finals

SPACES = {
    name: {key: found for key in RECIPES[name].free if (found := search_range(RECIPES[name], key))}
    for name in RECIPES
}
DIED = Outcome([], error="worker process 1 was killed by SIGKILL", infrastructure=True)


def plan(
    trials: int = 12, workers: int = 1, batch: int = 1, names: tuple[str, ...] = ("hf", "adaptive_hf")
) -> SearchPlan:
    """Return the plan of a search by TPE."""
    return SearchPlan({n: RECIPES[n] for n in names}, SPACES, trials, 0, "tpe", workers, batch)


def result_of(job: Job, slot: int, status: Status = "ok") -> TrialResult:
    """Return the result of one trial; its value is least at damping 5."""
    params = job.recipe.complete(job.params[slot])
    value = min(2.3, abs(math.log(params["damping"] / 5)))
    return TrialResult(
        recipe=job.recipe.name, slot=slot, status=status, steps=1, planned_steps=1, value=value,
        objective="train_loss", params=params, seed=0, seconds=0.0,
        measured=finals(value, value, 0.5, value, 0.5),
    )  # fmt: skip


class FakePool:
    """A pool that runs each job at once, in this process."""

    def __init__(self, records: Study, misbehave: Callable[[Job], Outcome | None], workers: int):
        self.records, self.misbehave, self.stopped = records, misbehave, False
        self.jobs: list[Job] = []
        self.ended: list[Ended] = []
        self.workers = workers

    def free(self) -> int:
        return self.workers - len(self.ended)

    def submit(self, job: Job) -> None:
        self.jobs.append(job)
        found = self.misbehave(job)
        if found is None:
            results = [result_of(job, slot) for slot in job.params]
            for result in results:
                self.records.trial(job.recipe.name, result.slot).finish(result, [], [])
            found = Outcome(results)
        self.ended.append(Ended(job, found))

    def events(self, timeout: float) -> Iterable[Ended]:
        ended, self.ended = self.ended, []
        return ended

    def stop(self) -> None:
        self.stopped = True

    def __enter__(self) -> FakePool:
        return self

    def __exit__(self, *unused: object) -> None:
        pass


class SerialPool:
    """A pool that trains each job in this process, one after the other."""

    def __init__(self, prepare: Prepare):
        self.pending: list[Job] = []
        self.said: list[Progress | Ended] = []
        self.stopped = False
        self.train = prepare(self.said.append, lambda: self.stopped)

    def free(self) -> int:
        return 1 - len(self.pending)

    def submit(self, job: Job) -> None:
        self.pending.append(job)

    def events(self, timeout: float) -> Iterable[Progress | Ended]:
        for job in self.pending:
            self.said.append(Ended(job, self.train(job)))
        self.pending = []
        said = [*self.said]
        self.said.clear()
        return said

    def stop(self) -> None:
        self.stopped = True

    def __enter__(self) -> SerialPool:
        return self

    def __exit__(self, *unused: object) -> None:
        pass


def serial_pool(spec: TaskSpec, plan: Plan, records: TrialFolders, workers: int, threads: int) -> SerialPool:
    """Return a pool in the place of `process_pool`, whose arguments it has."""
    return SerialPool(Trainer(spec, None, plan, records, threads))


def run(
    study: Study,
    own: SearchPlan,
    url: str | None = None,
    misbehave: Callable[[Job], Outcome | None] = lambda job: None,
    **hooks: object,
) -> list[Job]:
    """Run a search to its end and return the jobs that it submitted."""
    pool = FakePool(study, misbehave, own.workers)
    storage = open_storage(url) if url else None
    Search(own, study.trials, storage).run(lambda: pool, Hooks(**hooks))  # type: ignore[arg-type]
    if storage:
        storage.close()
    return pool.jobs


def table(study: Study, name: str) -> list[tuple[int, float, dict[str, float]]]:
    """Return slot, value and hyperparameters of a recipe's finished trials."""
    return [(r.slot, r.value, r.params) for r in study.finished(name)]


def index_of(url: str, name: str = "hf") -> list[optuna.trial.FrozenTrial]:
    """Return the trials that a storage holds."""
    storage = open_storage(url)
    with closing(storage):
        return optuna.load_study(study_name=name, storage=storage.backend).trials


def completed(url: str, name: str = "hf") -> list[int]:
    """Return the slots of the complete trials that a storage holds."""
    return [t.user_attrs["slot"] for t in index_of(url, name) if t.state == TrialState.COMPLETE]

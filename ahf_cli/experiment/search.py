"""N trials of each recipe: asked of a sampler, trained by workers, committed one by one, resumed by slot."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import optuna
from optuna.trial import TrialState, create_trial

from ahf_cli.errors import AhfError
from ahf_cli.experiment.records import Progress, TrialRecords, TrialResult
from ahf_cli.experiment.space import distributions, sampler, suggest
from ahf_cli.hyperparameters import Range, Recipe

MAX_ATTEMPTS = 3
"""Times that a trial is tried again after its worker process died."""


@dataclass(frozen=True)
class SearchPlan:
    """What a search does: recipes with their spaces, and how many trials of each."""

    recipes: Mapping[str, Recipe]
    spaces: Mapping[str, Mapping[str, Range]]
    trials: int
    seed: int
    sampler: str
    workers: int
    batch: int = 1
    """trials side by side in one job"""
    stream: int = 0
    """sampler's stream: 0 for a search, 1 for a pre-run"""
    prefix: str = ""
    """what the names of Optuna studies begin with, so that one storage can hold several of ours"""


@dataclass(frozen=True)
class Job:
    """Trials of one recipe that one worker trains side by side."""

    recipe: Recipe
    params: dict[int, dict[str, float]]
    """free hyperparameters by slot"""


@dataclass(frozen=True)
class Outcome:
    """What a worker says of a job."""

    results: list[TrialResult]
    stopped: bool = False
    """asked to stop; unfinished trials are in their checkpoints"""
    error: str = ""
    """a bug in the training code, in one line"""


class WorkerPool(Protocol):
    """Processes, or whatever else, that run jobs."""

    def submit(self, job: Job) -> Future[Outcome]:
        """Hand in a job."""
        ...

    def progress(self) -> Iterable[Progress]:
        """Return what running trials have said since the last call."""
        ...

    def stop(self) -> None:
        """Ask all workers to checkpoint and stop."""
        ...

    def __enter__(self) -> WorkerPool: ...

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Wait for running jobs and end the workers."""


@dataclass(frozen=True)
class Hooks:
    """What a search tells to whom it may concern."""

    on_result: Callable[[TrialResult], None] = lambda result: None
    on_progress: Callable[[Progress], None] = lambda progress: None
    should_stop: Callable[[], bool] = lambda: False


HOOKS = Hooks()


class Search:
    """One search over one storage.  The trial records are the truth; the storage is an index of them."""

    def __init__(self, plan: SearchPlan, records: TrialRecords, storage: str | None = None):
        self.plan, self.records = plan, records
        backend = optuna.storages.RDBStorage(storage) if storage else optuna.storages.InMemoryStorage()
        self.studies = {
            name: optuna.create_study(storage=backend, study_name=plan.prefix + name, load_if_exists=True)
            for name in plan.recipes
        }
        self.attempts: dict[tuple[str, int], int] = {}
        self._asked: dict[tuple[str, int], optuna.Trial] = {}
        self.unfinished: deque[tuple[str, int]] = deque()
        for name in plan.recipes:
            self._synchronise(name)
        for slot in range(plan.trials):  # slot by slot, so that an unfinished search has some of each recipe
            for name in plan.recipes:
                if self._finished(name, slot) is None:
                    self.unfinished.append((name, slot))

    def run(self, make_pool: Callable[[], WorkerPool], hooks: Hooks = HOOKS) -> bool:
        """Train everything that is unfinished; return whether all is done, False where it was stopped.

        Raises:
            AhfError: a bug in the training code, or a trial whose worker died too often.
        """
        while self.unfinished and not hooks.should_stop():
            with make_pool() as pool:
                try:
                    self._drain(pool, hooks)
                except BaseException:
                    pool.stop()
                    raise
        return not self.unfinished

    def _drain(self, pool: WorkerPool, hooks: Hooks) -> None:
        """Keep the pool busy until nothing is left, a stop, or a dead worker."""
        running: dict[Future[Outcome], Job] = {}
        stopping = False
        while running or (self.unfinished and not stopping):
            if not stopping and hooks.should_stop():
                stopping = True
                pool.stop()
            while self.unfinished and len(running) < self.plan.workers and not stopping:
                job = self._next_job()
                try:
                    running[pool.submit(job)] = job
                except BrokenProcessPool:
                    return self._retry([job, *running.values()])
            finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            for progress in pool.progress():
                hooks.on_progress(progress)
            for future in finished:
                job = running.pop(future)
                try:
                    outcome = future.result()
                except BrokenProcessPool:  # this pool is lost, with every job on it
                    return self._retry([job, *running.values()])
                self._settle(job, outcome, hooks.on_result)

    def _next_job(self) -> Job:
        """Take the next slots of one recipe, up to the size of a batch, and ask for their hyperparameters."""
        name, slot = self.unfinished.popleft()
        slots = [slot]
        for other in list(self.unfinished):
            if len(slots) < self.plan.batch and other[0] == name:
                self.unfinished.remove(other)
                slots.append(other[1])
        return Job(self.plan.recipes[name], {s: self._ask(name, s) for s in slots})

    def _ask(self, name: str, slot: int) -> dict[str, float]:
        """Return the hyperparameters of a slot: those it had when it was interrupted, or new ones."""
        study, space = self.studies[name], self.plan.spaces[name]
        record = self.records.trial(name, slot)
        before = (record.read_params() or {}).get("params", {})
        parallel = self.plan.workers * self.plan.batch > 1
        study.sampler = sampler(self.plan.sampler, self.plan.seed, self.plan.stream, slot, parallel)
        known = before.keys() == space.keys()
        study.enqueue_trial(before if known else {}, user_attrs={"slot": slot})
        trial = study.ask()
        params = suggest(trial, space)
        self._asked[name, slot] = trial
        record.write_params({"recipe": name, "slot": slot, "params": params, "started": _now()})
        return params

    def _settle(self, job: Job, outcome: Outcome, on_result: Callable[[TrialResult], None]) -> None:
        for result in outcome.results:
            self._tell(result)
            on_result(result)
        done = {result.slot for result in outcome.results}
        left = [slot for slot in job.params if slot not in done]
        if outcome.error:
            for slot in left:
                self._tell_failed(job.recipe.name, slot)
            first = f"{job.recipe.name}/{left[0]}" if left else job.recipe.name
            raise AhfError(f"trial {first} failed, and the search stops: {outcome.error}")
        for slot in reversed(left):
            self._tell_failed(job.recipe.name, slot)
            self.unfinished.appendleft((job.recipe.name, slot))

    def _retry(self, jobs: list[Job]) -> None:
        """Queue the trials of dead workers again with the same hyperparameters."""
        for job in jobs:
            name = job.recipe.name
            for slot in job.params:
                committed = self._finished(name, slot)
                if committed is not None:
                    self._tell(committed)
                    continue
                self.attempts[name, slot] = self.attempts.get((name, slot), 0) + 1
                self._tell_failed(name, slot)
                self.unfinished.appendleft((name, slot))
                if self.attempts[name, slot] > MAX_ATTEMPTS:
                    raise AhfError(
                        f"the worker of trial {name}/{slot} died {MAX_ATTEMPTS + 1} times (out of memory?); "
                        "the same command tries again"
                    )

    def _tell(self, result: TrialResult) -> None:
        trial = self._asked.pop((result.recipe, result.slot))
        for key, value in _attributes(result).items():
            trial.set_user_attr(key, value)
        self.studies[result.recipe].tell(trial, result.value)

    def _tell_failed(self, name: str, slot: int) -> None:
        self.studies[name].tell(self._asked.pop((name, slot)), state=TrialState.FAIL)

    def _finished(self, name: str, slot: int) -> TrialResult | None:
        result = self.records.trial(name, slot).result()
        return None if result is None or result.status == "failed" else result

    def _synchronise(self, name: str) -> None:
        """Make the index agree with the records: finished slots complete, stale trials failed."""
        study = self.studies[name]
        for trial in study.get_trials(deepcopy=False):
            if trial.state == TrialState.RUNNING:
                study.tell(trial.number, state=TrialState.FAIL)
            elif trial.state == TrialState.WAITING:
                study.tell(study.ask(), state=TrialState.FAIL)
        told = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        complete = {trial.user_attrs.get("slot") for trial in told}
        space = self.plan.spaces[name]
        for slot in range(self.plan.trials):
            result = self._finished(name, slot)
            if result is None or slot in complete:
                continue
            study.add_trial(
                create_trial(
                    value=result.value,
                    params={key: result.params[key] for key in space},
                    distributions=dict(distributions(space)),
                    user_attrs=_attributes(result),
                )
            )


def _attributes(result: TrialResult) -> dict[str, Any]:
    return {"slot": result.slot, "status": result.status, "test_accuracy": result.test_accuracy}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

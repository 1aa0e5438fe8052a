"""The search with a trial function of microseconds: counts, resume, failures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import optuna
import pytest

from ahf_cli.errors import AhfError
from ahf_cli.experiment.records import Progress, Status, TrialResult
from ahf_cli.experiment.search import Hooks, Job, Outcome, Search, SearchPlan
from ahf_cli.experiment.space import sampler, suggest
from ahf_cli.hyperparameters import RECIPES, Range, search_range
from ahf_cli.report.store import Study

SPACES = {
    name: {key: found for key in RECIPES[name].free if (found := search_range(RECIPES[name], key))}
    for name in RECIPES
}


def plan(
    trials: int = 12, workers: int = 1, batch: int = 1, names: tuple[str, ...] = ("hf", "adaptive_hf")
) -> SearchPlan:
    return SearchPlan({n: RECIPES[n] for n in names}, SPACES, trials, 0, "tpe", workers, batch)


def result_of(job: Job, slot: int, status: Status = "ok") -> TrialResult:
    params = job.recipe.complete(job.params[slot])
    value = min(2.3, abs(math.log(params["damping"] / 5)))
    return TrialResult(
        recipe=job.recipe.name, slot=slot, status=status, steps=1, planned_steps=1, value=value,
        objective="train_loss", params=params, seed=0, train_loss=value, test_loss=value, test_accuracy=0.5,
        validation_loss=value, validation_accuracy=0.5, seconds=0.0,
    )  # fmt: skip


class FakePool:
    """Runs jobs at once, in this process."""

    def __init__(
        self, records: Study, misbehave: Callable[[Job], Outcome | Exception | None] = lambda job: None
    ):
        self.records, self.misbehave, self.stopped = records, misbehave, False
        self.jobs: list[Job] = []

    def submit(self, job: Job) -> Future[Outcome]:
        self.jobs.append(job)
        future: Future[Outcome] = Future()
        found = self.misbehave(job)
        if isinstance(found, Exception):
            future.set_exception(found)
        elif found is not None:
            future.set_result(found)
        else:
            results = [result_of(job, slot) for slot in job.params]
            for result in results:
                self.records.trial(job.recipe.name, result.slot).finish(result, [], [])
            future.set_result(Outcome(results))
        return future

    def progress(self) -> Iterable[Progress]:
        return []

    def stop(self) -> None:
        self.stopped = True

    def __enter__(self) -> FakePool:
        return self

    def __exit__(self, *unused: object) -> None:
        pass


def run(study: Study, own: SearchPlan, storage: str | None = None, **hooks: object) -> list[Job]:
    pool = FakePool(study, hooks.pop("misbehave", lambda job: None))  # type: ignore[arg-type]
    Search(own, study, storage).run(lambda: pool, Hooks(**hooks))  # type: ignore[arg-type]
    return pool.jobs


def table(study: Study, name: str) -> list[tuple[int, float, dict[str, float]]]:
    return [(r.slot, r.value, r.params) for r in study.finished(name)]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("batch", [1, 5])
def test_exactly_n_slots_each_once(tmp_path: Path, workers: int, batch: int) -> None:
    study = Study(tmp_path, "s")
    jobs = run(study, plan(12, workers, batch))
    for name in ("hf", "adaptive_hf"):
        assert [slot for slot, _, _ in table(study, name)] == list(range(12))
    asked = [(job.recipe.name, slot) for job in jobs for slot in job.params]
    assert len(asked) == len(set(asked)) == 24
    assert max(len(job.params) for job in jobs) == min(batch, 12)
    for name in ("hf", "adaptive_hf"):
        for _, _, params in table(study, name):
            assert all(r.low <= params[key] <= r.high for key, r in SPACES[name].items())


def test_an_interrupted_search_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/a.db"
    straight, broken = Study(tmp_path, "straight"), Study(tmp_path, "broken")
    run(straight, plan())
    for limit in (3, 0, 7, 1, 100):  # each run of the search is stopped after so many trials
        seen: list[TrialResult] = []
        run(broken, plan(), storage, on_result=seen.append, should_stop=lambda n=limit, s=seen: len(s) >= n)
    for name in ("hf", "adaptive_hf"):
        assert table(broken, name) == table(straight, name)


def test_the_storage_is_an_index_that_is_rebuilt(tmp_path: Path) -> None:
    straight, study = Study(tmp_path, "straight"), Study(tmp_path, "s")
    run(straight, plan(14))
    run(study, plan(9), f"sqlite:///{tmp_path}/one.db")
    run(study, plan(14), f"sqlite:///{tmp_path}/two.db")  # as if the first had been deleted
    assert table(study, "hf") == table(straight, "hf")
    index = optuna.load_study(study_name="hf", storage=f"sqlite:///{tmp_path}/two.db")
    assert sorted(t.user_attrs["slot"] for t in index.trials) == list(range(14))
    assert {t.state for t in index.trials} == {optuna.trial.TrialState.COMPLETE}


def test_a_killed_search_leaves_stale_trials_that_count_for_nothing(tmp_path: Path) -> None:
    study, storage = Study(tmp_path, "s"), f"sqlite:///{tmp_path}/a.db"
    killed = Search(plan(4), study, storage)
    job = killed._next_job()  # asked, and then the process is gone
    jobs = run(study, plan(4), storage)
    assert jobs[0].params == job.params  # the same hyperparameters, from the trial's folder
    index = optuna.load_study(study_name="hf", storage=storage)
    done = [t.user_attrs["slot"] for t in index.trials if t.state == optuna.trial.TrialState.COMPLETE]
    assert sorted(done) == [0, 1, 2, 3]
    assert len([t for t in index.trials if t.state == optuna.trial.TrialState.FAIL]) == 1


def test_more_trials_later_are_added_and_fewer_take_nothing_away(tmp_path: Path) -> None:
    study = Study(tmp_path, "s")
    run(study, plan(3))
    before = table(study, "hf")
    assert run(study, plan(2)) == [] and table(study, "hf") == before
    run(study, plan(5))
    assert table(study, "hf")[:3] == before and len(table(study, "hf")) == 5


def test_recipes_with_equal_spaces_begin_with_equal_trials(tmp_path: Path) -> None:
    study = Study(tmp_path, "s")
    run(study, plan(4, names=("hf", "hf_published")))
    assert [p for _, _, p in table(study, "hf")] == [p for _, _, p in table(study, "hf_published")]


def test_a_dead_worker_is_tried_again_with_the_same_hyperparameters(tmp_path: Path) -> None:
    study, deaths = Study(tmp_path, "s"), iter([BrokenProcessPool("killed")] * 2)
    jobs = run(study, plan(2, workers=2), misbehave=lambda job: next(deaths, None))
    assert len(study.finished("hf")) == len(study.finished("adaptive_hf")) == 2
    params: dict[tuple[str, int], dict[str, float]] = {}
    for job in jobs:
        for slot, values in job.params.items():
            assert params.setdefault((job.recipe.name, slot), values) == values


def test_a_worker_that_always_dies_ends_the_search_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(AhfError, match=r"the worker of trial hf/0 died 4 times"):
        run(Study(tmp_path, "s"), plan(2), misbehave=lambda job: BrokenProcessPool("killed"))


def test_a_bug_stops_the_search_and_names_the_trial(tmp_path: Path) -> None:
    study = Study(tmp_path, "s")

    def bug(job: Job) -> Outcome | None:
        return Outcome([], error="ZeroDivisionError: oh") if 1 in job.params else None

    with pytest.raises(AhfError, match=r"trial hf/1 failed, and the search stops: ZeroDivisionError: oh"):
        run(study, plan(3), misbehave=bug)
    assert [slot for slot, _, _ in table(study, "hf")] == [0]


def test_stopped_jobs_stay_unfinished(tmp_path: Path) -> None:
    study = Study(tmp_path, "s")
    pool = FakePool(study, lambda job: Outcome([], stopped=True))
    stops = iter([False, False, False, True, True, True, True])
    search = Search(plan(2), study)
    assert search.run(lambda: pool, Hooks(should_stop=lambda: next(stops, True))) is False
    assert pool.stopped and len(search.unfinished) == 4 and study.finished("hf") == []


def test_diverged_trials_count_and_are_told_as_chance(tmp_path: Path) -> None:
    study, storage = Study(tmp_path, "s"), f"sqlite:///{tmp_path}/a.db"

    def lost(job: Job) -> Outcome:
        results = [result_of(job, slot, "diverged") for slot in job.params]
        for result in results:
            study.trial(job.recipe.name, result.slot).finish(result, [], [])
        return Outcome(results)

    run(study, plan(3, names=("hf",)), storage, misbehave=lost)
    index = optuna.load_study(study_name="hf", storage=storage)
    assert [t.state.name for t in index.trials] == ["COMPLETE"] * 3
    assert {t.user_attrs["status"] for t in index.trials} == {"diverged"}


def test_sampler_seeds_differ_by_slot_and_stream_only() -> None:
    def draw(stream: int, slot: int, name: str = "tpe") -> dict[str, float]:
        study = optuna.create_study(sampler=sampler(name, 0, stream, slot, False))
        return suggest(study.ask(), {"lr": Range(1e-3, 1, log=True)})

    assert draw(0, 0) == draw(0, 0) != draw(0, 1) and draw(0, 0) != draw(1, 0)
    assert draw(0, 3, "random") == draw(0, 3, "random") != draw(0, 4, "random")

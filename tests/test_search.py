"""A search with trials of microseconds: counts, resumption and failures."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from ahf_cli.errors import AhfError
from ahf_cli.recipes.hyperparameters import Range
from ahf_cli.search.pool import Job, Outcome
from ahf_cli.search.run import own_storage
from ahf_cli.search.sampler import sampler, suggest
from ahf_cli.search.search import Hooks, Search
from ahf_cli.search.storage import open_storage, sqlite_url
from ahf_cli.study.store import Study
from ahf_cli.study.trial_folder import TrialFolder
from ahf_cli.training.records import TrialResult
from tests.searches import DIED, SPACES, FakePool, completed, index_of, plan, result_of, run, table


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
    storage = sqlite_url(tmp_path / "a.db")
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
    run(study, plan(9), sqlite_url(tmp_path / "one.db"))
    run(study, plan(14), sqlite_url(tmp_path / "two.db"))  # as if the first had been deleted
    assert table(study, "hf") == table(straight, "hf")
    index = index_of(sqlite_url(tmp_path / "two.db"))
    assert sorted(t.user_attrs["slot"] for t in index) == list(range(14))
    assert {t.state for t in index} == {TrialState.COMPLETE}


def test_a_killed_search_leaves_stale_trials_that_count_for_nothing(tmp_path: Path) -> None:
    study, storage = Study(tmp_path, "s"), sqlite_url(tmp_path / "a.db")
    with closing(open_storage(storage)) as opened:
        killed = Search(plan(4), study.trials, opened)
        job = killed._next_job(Hooks())  # asked, and then the process is gone
    jobs = run(study, plan(4), storage)
    assert job and jobs[0].params == job.params  # the same hyperparameters, from the trial's folder
    assert sorted(completed(storage)) == [0, 1, 2, 3]
    assert len([t for t in index_of(storage) if t.state == TrialState.FAIL]) == 1


def test_a_trial_redone_after_damage_is_complete_once(tmp_path: Path) -> None:
    study, storage = Study(tmp_path, "s"), sqlite_url(tmp_path / "a.db")
    run(study, plan(4), storage)
    (study.trial("hf", 2).path / "result.json").write_text("{")
    jobs = run(study, plan(4), storage)
    assert [(job.recipe.name, list(job.params)) for job in jobs] == [("hf", [2])]
    assert sorted(completed(storage)) == [0, 1, 2, 3] and sorted(completed(storage, "adaptive_hf"))
    run(study, plan(5), storage)
    assert sorted(completed(storage)) == [0, 1, 2, 3, 4]


def test_an_index_that_counts_a_slot_twice_is_made_anew(tmp_path: Path) -> None:
    study, storage = Study(tmp_path, "s"), sqlite_url(tmp_path / "a.db")
    run(study, plan(3), storage)
    with closing(open_storage(storage)) as opened:
        twice = optuna.load_study(study_name="hf", storage=opened.backend)
        twice.add_trial(twice.trials[1])
        twice.enqueue_trial({})  # by another program, without a slot
    assert run(study, plan(3), storage) == []
    assert sorted(completed(storage)) == [0, 1, 2]


@pytest.mark.parametrize(
    "params",
    ['{"params": {"lr": "big", "damping": 2}}', '{"params": {"lr": 1e9, "damping": 2}}', '{"params": [1]}',
     "[]",
     '{"params": {"lr": true, "damping": 2}}', '{"params": {"lr": null, "damping": 2}}', '{"param', "\xff"],
)  # fmt: skip
def test_odd_hyperparameters_in_a_folder_are_asked_anew(tmp_path: Path, params: str) -> None:
    straight, study = Study(tmp_path, "straight"), Study(tmp_path, "s")
    run(straight, plan(2))
    folder = study.trial("hf", 0).path
    folder.mkdir(parents=True)
    (folder / "params.json").write_bytes(params.encode("latin-1"))
    run(study, plan(2))
    assert table(study, "hf") == table(straight, "hf")


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


def test_a_failure_of_the_machine_is_tried_again_with_the_same_hyperparameters(tmp_path: Path) -> None:
    study, deaths = Study(tmp_path, "s"), iter([DIED, DIED])
    said: list[str] = []
    jobs = run(study, plan(2, workers=2), misbehave=lambda job: next(deaths, None), on_remark=said.append)
    assert len(study.finished("hf")) == len(study.finished("adaptive_hf")) == 2
    params: dict[tuple[str, int], dict[str, float]] = {}
    for job in jobs:
        for slot, values in job.params.items():
            assert params.setdefault((job.recipe.name, slot), values) == values
    assert said == [
        "hf/000 is tried again (retry 1 of 3): worker process 1 was killed by SIGKILL",
        "adaptive_hf/000 is tried again (retry 1 of 3): worker process 1 was killed by SIGKILL",
    ]
    attempts = [next(job.attempts[0] for job in reversed(jobs) if job.recipe.name == n and 0 in job.params)
                for n in ("hf", "adaptive_hf")]  # fmt: skip
    assert attempts == [2, 2]


def test_three_failures_in_a_row_end_the_search_with_a_reason(tmp_path: Path) -> None:
    study = Study(tmp_path, "s")
    with pytest.raises(AhfError, match=r"^3 failures in a row, and this search leaves: No space left on"):
        full = Outcome([], error="No space left on device", infrastructure=True)
        run(study, plan(2), misbehave=lambda job: full)
    run(study, plan(2))  # the same command goes on
    assert len(study.finished("hf")) == 2


def test_a_trial_that_always_fails_is_given_up_and_the_others_go_on(tmp_path: Path) -> None:
    study, storage, said = Study(tmp_path, "s"), sqlite_url(tmp_path / "a.db"), list[str]()
    own = replace(plan(4, workers=2, names=("hf",)), cap=1.5)
    with pytest.raises(AhfError, match=r"^failed 4 times each: hf/1; the same command tries again$"):
        run(study, own, storage, lambda job: DIED if 1 in job.params else None, on_remark=said.append)
    assert len(said) == 4 and "hf/001 is given up" in said[-1]
    results = study.finished("hf")
    assert [(r.slot, r.status, r.attempts) for r in results] == [
        (0, "ok", 1), (1, "failed", 4), (2, "ok", 1), (3, "ok", 1),
    ]  # fmt: skip
    assert results[1].value == 1.5
    (job,) = run(study, own, storage)
    assert job.params.keys() == {1} and [r.status for r in study.finished("hf")] == ["ok"] * 4


def test_a_folder_that_cannot_be_written_is_a_failure_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, said, full = Study(tmp_path, "s"), list[str](), iter([True, True, False, True])
    write = TrialFolder.write_params

    def sometimes(folder: TrialFolder, params: Mapping[str, object]) -> None:
        if next(full, False):
            raise OSError(28, "No space left on device", "params.json")
        write(folder, params)

    monkeypatch.setattr(TrialFolder, "write_params", sometimes)
    run(study, plan(2), on_remark=said.append)
    assert len(study.finished("hf")) == 2 and len(said) == 3 and "No space left on device" in said[0]


def test_what_a_worker_committed_before_it_died_is_counted_and_told(tmp_path: Path) -> None:
    study, seen = Study(tmp_path, "s"), list[TrialResult]()

    jobs = run(study, plan(4, 1, 2, ("hf",)), misbehave=lambda job: (
        None if job.params.keys() != {2, 3} or study.trial("hf", 2).result() else commit(study, job)
    ), on_result=seen.append)  # fmt: skip
    assert [r.slot for r in seen] == [0, 1, 2, 3] and [list(job.params) for job in jobs][-1] == [3]


def commit(study: Study, job: Job) -> Outcome:
    study.trial("hf", 2).finish(result_of(job, 2), [], [])
    return DIED


def test_a_bug_stops_the_search_and_names_the_trial(tmp_path: Path) -> None:
    study = Study(tmp_path, "s")

    def bug(job: Job) -> Outcome | None:
        return Outcome([], error="ZeroDivisionError: oh") if 1 in job.params else None

    with pytest.raises(AhfError, match=r"trial hf/1 failed, and the search stops: ZeroDivisionError: oh"):
        run(study, plan(3), misbehave=bug)
    assert [slot for slot, _, _ in table(study, "hf")] == [0]


def test_stopped_jobs_stay_unfinished(tmp_path: Path) -> None:
    study = Study(tmp_path, "s")
    pool = FakePool(study, lambda job: Outcome([], stopped=True), 1)
    stops = iter([False, False, False, True])
    search = Search(plan(2), study.trials)
    assert search.run(lambda: pool, Hooks(should_stop=lambda: next(stops, True))) is False
    assert pool.stopped and len(search.unfinished) == 4 and study.finished("hf") == []


def test_diverged_trials_count_and_are_told_as_chance(tmp_path: Path) -> None:
    study, storage = Study(tmp_path, "s"), sqlite_url(tmp_path / "a.db")

    def lost(job: Job) -> Outcome:
        results = [result_of(job, slot, "diverged") for slot in job.params]
        for result in results:
            study.trial(job.recipe.name, result.slot).finish(result, [], [])
        return Outcome(results)

    run(study, plan(3, names=("hf",)), storage, misbehave=lost)
    assert [t.state.name for t in index_of(storage)] == ["COMPLETE"] * 3
    assert {t.user_attrs["status"] for t in index_of(storage)} == {"diverged"}


def test_sampler_seeds_differ_by_slot_and_stream_only() -> None:
    def draw(stream: int, slot: int, name: str = "tpe") -> dict[str, float]:
        study = optuna.create_study(sampler=sampler(name, 0, stream, slot, False))
        return suggest(study.ask(), {"lr": Range(1e-3, 1, log=True)})

    assert draw(0, 0) == draw(0, 0) != draw(0, 1) and draw(0, 0) != draw(1, 0)
    assert draw(0, 3, "random") == draw(0, 3, "random") != draw(0, 4, "random")


def test_an_index_of_another_version_of_optuna_is_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = Study(tmp_path, "s")
    index = study.folder / "study.db"
    index.parent.mkdir()
    run(study, plan(2), sqlite_url(index))
    with closing(sqlite3.connect(index)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
    own_storage(study).close()
    assert caplog.text.count("of another version of Optuna") == 1
    assert index.with_name("study.db.corrupt-1").exists() and index.exists()
    caplog.clear()
    own_storage(study).close()
    assert not caplog.records
    assert run(study, plan(2), sqlite_url(index)) == [] and sorted(completed(sqlite_url(index))) == [0, 1]
